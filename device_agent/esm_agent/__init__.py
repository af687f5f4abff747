"""How it is measured: the agent that runs on the device whose latency matters."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("esm-profiler")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
