"""Torch module of a subnet, and the weights with which it computes the same as its ONNX file."""

from __future__ import annotations

import linecache
from types import ModuleType

import torch
from torch import Tensor, nn

from esm_host.exporting.torch_source import CLASS, NORM, NORM_EPSILON, TorchSource
from esm_models.graph import WeightSource

_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")


def build(source: TorchSource, name: str) -> nn.Module:
    """Return the module, with weights as torch initialises them.

    Args:
        source: Source of the module.
        name: Name of the Python module with its classes.
    """
    module = ModuleType(name)
    place = f"<{name}>"
    exec(compile(source.text, place, "exec"), module.__dict__)
    # Tracebacks, notebooks and TorchScript read the source from the line cache.
    linecache.cache[place] = (len(source.text), None, source.text.splitlines(True), place)
    network: nn.Module = getattr(module, CLASS)()
    return network


def weights_of(source: TorchSource, weights: WeightSource) -> dict[str, Tensor]:
    """Return the state dict with which the module in inference equals the graph with these weights.

    The bias of a convolution becomes the shift of its batch normalisation, with mean 0 and
    deviation 1.
    """
    state: dict[str, Tensor] = {}
    for layer in source.layers:
        arrays = [torch.from_numpy(weights(name, shape).copy()) for name, shape in layer.arrays]
        if layer.operator == "BatchNormalization":
            state |= _norm(layer.path, arrays)
            continue
        if layer.operator == "Parameter":
            (state[layer.path],) = arrays
            continue
        if layer.operator == "MatMul":  # its weight is input features first
            arrays[0] = arrays[0].T.contiguous()
        names = ("weight", "bias")[: len(arrays)]
        if layer.folded:
            state[f"{layer.path}.weight"], shift = arrays
            ones, zeros = torch.ones_like(shift), torch.zeros_like(shift)
            # The layer divides by sqrt(variance + epsilon).
            state |= _norm(layer.path + NORM, [ones, shift, zeros, ones - NORM_EPSILON])
        else:
            named = zip(names, arrays, strict=True)
            state |= {f"{layer.path}.{name}": array for name, array in named}
    return state


def _norm(path: str, arrays: list[Tensor]) -> dict[str, Tensor]:
    state = {f"{path}.{n}": array for n, array in zip(_NORM_ARRAYS, arrays, strict=True)}
    return {**state, f"{path}.num_batches_tracked": torch.tensor(0)}
