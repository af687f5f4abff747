"""Why it is measured, and what follows: sampling, encoding, predicting, deciding what is next."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esm_host.run import Run as Run
    from esm_host.run import load_run as load_run
    from esm_host.timing_file import TimingFile as TimingFile
    from esm_host.timing_file import load_timing as load_timing

# Name -> module, imported when it is asked for: `import esm_host` stays fast.
_LAZY = {
    "Run": "esm_host.run",
    "load_run": "esm_host.run",
    "TimingFile": "esm_host.timing_file",
    "load_timing": "esm_host.timing_file",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'esm_host' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
