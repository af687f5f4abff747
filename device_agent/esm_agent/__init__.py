"""Agent that times models on the device whose latency matters."""

__version__: str


def __getattr__(name: str) -> str:
    """Look up ``__version__`` on first use; without it the measuring process starts sooner."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("esm-profiler")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
