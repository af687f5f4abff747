"""CUDA provider of ONNX Runtime: inputs and outputs stay on the GPU."""

from __future__ import annotations

import contextlib
import os
import re
import sys

import onnxruntime

from esm_agent.measure.outcomes import ModelError, one_line
from esm_agent.providers.base import Options, Provider, ProviderOption, Use
from esm_protos.messages import DeviceState, FailureKind
from esm_protos.text import install


class CudaProvider(Provider):
    """CUDA provider on one GPU, numbered as in nvidia-smi among the GPUs visible to CUDA."""

    name = "cuda"
    runtime_name = "CUDAExecutionProvider"
    options = (
        ProviderOption("tf32", "bool", "0", "Round float32 to TF32 (19 bits) for tensor cores."),
        ProviderOption(
            "cuda_graph",
            "bool",
            "0",
            "Record the kernel launches of an inference once and replay them.",
        ),
        ProviderOption(
            "conv_search",
            "text",
            "EXHAUSTIVE",
            "Selection of convolution algorithms in cuDNN; EXHAUSTIVE times them.",
            ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        ),
    )
    cure = f"in an environment of its own, {install('agent-cuda')}"
    why_not_loading = (
        ": usually libraries of CUDA or cuDNN are missing "
        f"({install('agent-cuda')}), or nvidia-smi shows no GPU"
    )
    version = onnxruntime.__version__
    vendor = "NVIDIA"
    kind = "GPU"
    gpu = True
    memory = "cuda"
    # Texts of cudaGetErrorString after which the process cannot use CUDA any more.
    fatal = re.compile(
        "uncorrectable (ECC|NVLink) error|illegal memory access|launch timed out|"
        "device-side assert|hardware stack error|illegal instruction|misaligned address|"
        "global/shared address space|invalid program counter|unspecified launch failure"
    )

    def prepare(self) -> None:
        # The order of nvidia-smi and NVML; by default CUDA puts the fastest GPU first.
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        # Cache of compiled kernels: a service cannot write to the home folder.
        if folder := os.environ.get("STATE_DIRECTORY"):
            os.environ.setdefault("CUDA_CACHE_PATH", f"{folder.partition(':')[0]}/cuda")
        # Since onnxruntime 1.21; finds the libraries that pip installed.
        if hasattr(self.runtime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # stdout carries the agent's address
                self.runtime.preload_dlls()

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return the provider's options, with explicit defaults for all that change latencies.

        Placement does not depend on the algorithm search or on CUDA graphs, and a replayed graph
        has no nodes in a profile. Other sessions than timed ones therefore do without.
        """
        timed, placed = use is Use.TIMED, use is Use.PLACED
        return {
            "device_id": str(self.device),
            "use_tf32": options["tf32"],
            "enable_cuda_graph": options["cuda_graph"] if timed else "0",
            "cudnn_conv_algo_search": "HEURISTIC" if placed else options["conv_search"],
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
            # Models of a block share the memory: allocate no more than needed.
            "arena_extend_strategy": "kSameAsRequested",
        }

    def identity(self, device: DeviceState) -> dict[str, str]:
        return {"gpu": ", ".join(gpu.name for gpu in device.gpus)}

    def explain(self, error: Exception) -> ModelError:
        text = one_line(error)
        # The runtime's message if a CUDA graph cannot be recorded.
        if "as requested by the user" in text:
            text = f"this model cannot be a CUDA graph, leave out the option cuda_graph: {text}"
            return ModelError(FailureKind.UNSUPPORTED_OP, text)
        return super().explain(error)
