"""ONNX Runtime's CPU provider, with a fixed number of threads."""

from __future__ import annotations

from esm_agent.providers.base import Options, Provider, Use


class CpuProvider(Provider):
    """The CPU provider; every model runs on it whole."""

    name = "cpu"
    runtime_name = "CPUExecutionProvider"
    may_fall_back = False

    def runtime_options(self, options: Options, use: Use) -> dict[str, str]:
        """Return nothing: options of providers derived from it are of the session."""
        return {}
