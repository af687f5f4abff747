"""How it is measured: the agent that runs on the device whose latency matters."""

__version__: str


def __getattr__(name: str) -> str:
    """``__version__`` when it is asked for: the measuring process starts sooner without."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("esm-profiler")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
