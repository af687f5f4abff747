"""Well-known networks that come with the program, to time without a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import esm_models
from esm_host.errors import UsageError
from esm_host.timing.model_file import ModelFile, read_model_file
from esm_host.typed import typed
from esm_protos.nearest import unknown

_FOLDER = Path(esm_models.__file__).parent / "example_models"


def example_names() -> list[str]:
    """Return the names of all examples."""
    return sorted(path.stem for path in _FOLDER.glob("*.onnx"))


@typed
def example_model(name: str) -> bytes:
    """Return an example as an ONNX model without weights; the device draws them.

    Args:
        name: Name of the example, such as ``"mobilenetv3"``.

    Raises:
        UsageError: there is no such example; the message lists all.
    """
    return _path(name).read_bytes()


def example_file(name: str) -> ModelFile:
    """Return an example as a model file with the example's name.

    Raises:
        UsageError: there is no such example.
    """
    return replace(read_model_file(_path(name)), path=name)


def _path(name: str) -> Path:
    if name not in (known := example_names()):
        raise UsageError(unknown("example", name, known))
    return _FOLDER / f"{name}.onnx"
