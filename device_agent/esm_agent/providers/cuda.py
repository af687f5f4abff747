"""ONNX Runtime's CUDA provider: inputs and outputs stay on the GPU, copies are timed apart."""

from __future__ import annotations

import contextlib
import os
import re
import sys

from esm_agent.measure.outcomes import ModelError, one_line
from esm_agent.providers.base import Options, Provider, ProviderOption, Use
from esm_protos.messages import DeviceState, FailureKind
from esm_protos.text import install


class CudaProvider(Provider):
    """The CUDA provider on one GPU, by its number in the order of nvidia-smi among those that CUDA
    may see."""

    name = "cuda"
    runtime_name = "CUDAExecutionProvider"
    options = (
        ProviderOption("tf32", "bool", "0", "Let tensor cores round float32 to 19 bits."),
        ProviderOption(
            "cuda_graph", "bool", "0", "Record an inference's launches once and replay them."
        ),
        ProviderOption(
            "conv_search",
            "text",
            "EXHAUSTIVE",
            "How cuDNN chooses algorithms of convolutions; EXHAUSTIVE times them.",
            ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        ),
    )
    cure = f"in an environment of its own, {install('agent-cuda')}"
    why_not_loading = (
        ": most often libraries of CUDA or cuDNN are missing "
        f"({install('agent-cuda')}), or nvidia-smi shows no GPU"
    )
    gpu = True
    memory = "cuda"
    # cudaGetErrorString of those errors after which nothing works in the process any more.
    fatal = re.compile(
        "uncorrectable (ECC|NVLink) error|illegal memory access|launch timed out|"
        "device-side assert|hardware stack error|illegal instruction|misaligned address|"
        "global/shared address space|invalid program counter|unspecified launch failure"
    )

    def prepare(self) -> None:
        # As nvidia-smi and NVML count; by itself CUDA begins with the fastest.
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        # Compiled kernels are kept: as a service not at home, which it cannot write to.
        if folder := os.environ.get("STATE_DIRECTORY"):
            os.environ.setdefault("CUDA_CACHE_PATH", f"{folder.partition(':')[0]}/cuda")
        # Since onnxruntime 1.21; finds the libraries that pip installed.
        if hasattr(self.runtime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the agent's address
                self.runtime.preload_dlls()

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return the provider's options; whatever changes latencies is stated, also the defaults.

        Which algorithm and how it is launched makes no difference to where a node runs, and a
        replayed graph has no nodes to tell of.
        """
        timed, placed = use is Use.TIMED, use is Use.PLACED
        return {
            "device_id": str(self.device),
            "use_tf32": options["tf32"],
            "enable_cuda_graph": options["cuda_graph"] if timed else "0",
            "cudnn_conv_algo_search": "HEURISTIC" if placed else options["conv_search"],
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
            # A block's models share the memory: no session takes twice what it needs.
            "arena_extend_strategy": "kSameAsRequested",
        }

    def identity(self, device: DeviceState) -> dict[str, str]:
        return {"gpu": ", ".join(gpu.name for gpu in device.gpus)}

    def explain(self, error: Exception) -> ModelError:
        text = one_line(error)
        if "as requested by the user" in text:  # its words when a CUDA graph cannot be recorded
            text = (
                "no CUDA graph can be made of this model, leave --ep-option cuda_graph=1 out: "
                f"{text}"
            )
            return ModelError(FailureKind.UNSUPPORTED_OP, text)
        return super().explain(error)
