"""Export of a user's torch module to ONNX, for timing."""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esm_host.errors import UsageError


def onnx_of(module: nn.Module, example_inputs: Any, name: str) -> bytes:
    """Return a module as ONNX, in evaluation mode, by torch's own exporter.

    Args:
        module: The module.
        example_inputs: Tensor, or tuple of the arguments of ``forward``; the graph has their
            shapes.
        name: Name of the module in messages.

    Raises:
        UsageError: torch cannot export the module.
    """
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    training = module.training
    try:
        with (
            tempfile.TemporaryDirectory(prefix="esm-") as folder,
            warnings.catch_warnings(),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # deprecation warnings of the exporter
            module.eval()
            # The newer exporter needs a package that torch does not install.
            newer = find_spec("onnxscript") is not None
            path = Path(folder) / "module.onnx"
            torch.onnx.export(module, given, path, dynamo=newer, external_data=False)
            return path.read_bytes()
    except Exception as error:  # a user's forward may raise any type
        first = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(
            f"{name} cannot be exported by torch ({type(error).__name__}: {first}): export it "
            "yourself, and give the ONNX file"
        ) from error
    finally:
        module.train(training)
