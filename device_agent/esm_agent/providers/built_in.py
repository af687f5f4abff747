"""Any execution provider that an onnxruntime wheel has built in."""

from __future__ import annotations

from typing import Any, NamedTuple

import onnxruntime

from esm_agent.providers.base import Options, Provider, Use
from esm_protos.messages import DeviceState

_SUFFIX = "ExecutionProvider"


class Known(NamedTuple):
    """Facts about a provider that ONNX Runtime does not tell.

    Attributes:
        name: Name for clients.
        vendor: Its vendor.
        kind: Kind of its device; empty: unknown.
        threads_option: Its option for the number of its threads; empty: it has none.
    """

    name: str
    vendor: str = ""
    kind: str = ""
    threads_option: str = ""


KNOWN = {
    "ACLExecutionProvider": Known("acl", "Arm", "CPU"),
    "CANNExecutionProvider": Known("cann", "Huawei", "NPU"),
    "CoreMLExecutionProvider": Known("coreml", "Apple"),
    "DmlExecutionProvider": Known("directml", "Microsoft", "GPU"),
    "DnnlExecutionProvider": Known("dnnl", "Intel", "CPU"),
    "MIGraphXExecutionProvider": Known("migraphx", "AMD", "GPU"),
    "NvTensorRTRTXExecutionProvider": Known("tensorrt-rtx", "NVIDIA", "GPU"),
    "OpenVINOExecutionProvider": Known("openvino", "Intel", "CPU", "num_of_threads"),
    "QNNExecutionProvider": Known("qnn", "Qualcomm", "NPU"),
    "ROCMExecutionProvider": Known("rocm", "AMD", "GPU"),
    "TensorrtExecutionProvider": Known("tensorrt", "NVIDIA", "GPU"),
    "VitisAIExecutionProvider": Known("vitisai", "AMD", "NPU"),
    "WebGpuExecutionProvider": Known("webgpu", "Microsoft", "GPU"),
    "ggml": Known("ggml", threads_option="threads"),
    "XnnpackExecutionProvider": Known("xnnpack", "Google", "CPU", "intra_op_num_threads"),
}
_BY_DEVICE_ID = {"cann", "directml", "migraphx", "rocm", "tensorrt", "tensorrt-rtx"}
"""Providers with the option ``device_id``, the number of the device."""


def known(runtime_name: str) -> Known:
    """Return what is known of a provider by its name in ONNX Runtime.

    A plug-in may take the name under which its library is registered: that for clients is known
    too.
    """
    short = runtime_name.removesuffix(_SUFFIX).lower()
    by_name = (each for each in KNOWN.values() if each.name == short)
    return KNOWN.get(runtime_name) or next(by_name, Known(short))


class BuiltInProvider(Provider):
    """Execution provider of the installed wheel; options of clients reach it as text.

    Args:
        runtime_name: Name in ONNX Runtime.
        device: Number of the device.
        runtime: Module onnxruntime, or a substitute in tests.
    """

    open_options = True

    def __init__(self, runtime_name: str, device: int = 0, runtime: Any = onnxruntime) -> None:
        super().__init__(device, runtime)
        self.runtime_name = runtime_name
        self.name, self.vendor, self.kind, self.threads_option = known(runtime_name)
        self.chooses_threads = not self.threads_option
        self.version = runtime.__version__
        self.gpu = self.kind == "GPU"

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return the options given, with the number of the device."""
        number = {"device_id": str(self.device)} if self.name in _BY_DEVICE_ID else {}
        return {**number, **options}

    def identity(self, device: DeviceState) -> dict[str, str]:
        return {"gpu": ", ".join(gpu.name for gpu in device.gpus)} if self.gpu else {}
