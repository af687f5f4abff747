"""CPU provider of ONNX Runtime."""

from __future__ import annotations

import onnxruntime

from esm_agent.providers.base import Options, Provider, Use


class CpuProvider(Provider):
    """CPU provider; it runs every node."""

    name = "cpu"
    runtime_name = "CPUExecutionProvider"
    may_fall_back = False
    version = onnxruntime.__version__
    vendor = "Microsoft"
    kind = "CPU"

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return no options: subclasses set theirs on the session."""
        return {}
