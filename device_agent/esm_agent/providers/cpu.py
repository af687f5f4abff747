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

    def why_not(self) -> str:
        """Return why the provider does not work, such as a subclass of another runtime's name."""
        if absent := super().why_not():
            return absent
        if self.runtime_name == CpuProvider.runtime_name:
            return ""
        return (
            f"its runtime_name {self.runtime_name} is not that of CpuProvider, which gives the "
            "runtime no options: derive it from esm_agent.providers.base.Provider"
        )

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return no options: subclasses set theirs on the session."""
        return {}
