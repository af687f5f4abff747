"""Weights of networks as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def weights(network: nn.Module, name: str) -> dict[str, NDArray[Any]]:
    """Return a network's state, with names ``NAME.ITS-OWN-NAME``."""
    state = network.state_dict()
    return {f"{name}.{own}": value.detach().numpy() for own, value in state.items()}


def load_weights(network: Network, arrays: Mapping[str, NDArray[np.generic]], name: str) -> Network:
    """Load the arrays of :func:`weights` into a network and return it.

    Raises:
        KeyError: an array is missing.
        RuntimeError: an array has another shape.
    """
    wanted = network.state_dict()
    network.load_state_dict({own: torch.from_numpy(arrays[f"{name}.{own}"]) for own in wanted})
    return network
