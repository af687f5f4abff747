"""CPU provider of ONNX Runtime."""

from __future__ import annotations

from esm_agent.providers.base import Options, Provider, Use


class CpuProvider(Provider):
    """CPU provider; it runs every node."""

    name = "cpu"
    runtime_name = "CPUExecutionProvider"
    may_fall_back = False

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return no options: subclasses set theirs on the session."""
        return {}
