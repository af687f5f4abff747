"""Parts of HELP and MultiPredict: inputs from architectures, and scaled latencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from esm_host.encoding import make_encoder
from esm_host.predictors.networks import GraphColumns, Linears, mean_and_sd
from esm_host.transfer.base import Floats
from esm_models.space import Codes, SearchSpace

_GRAPH_LAYERS = 4


def check_encoding(space: SearchSpace, encoding: str | None) -> None:
    """Check that there is such an encoding, and that it suits the space.

    Raises:
        UsageError: it does not.
    """
    if encoding is not None:
        make_encoder(encoding, space)


class ArchitectureInput:
    """Encodings for a network, and the network's first layers.

    Args:
        space: Search space.
        encoding: Name of the encoding. None is ``graph`` for spaces with a wiring, whose cells both
            methods read by graph convolutions, else ``operation-one-hot``.
        codes: Architectures that determine the scale of the columns, ``(n, *space.code_shape)``.
    """

    def __init__(self, space: SearchSpace, encoding: str | None, codes: Codes) -> None:
        name = encoding or ("graph" if space.wiring else "operation-one-hot")
        self._encoder = make_encoder(name, space)
        largest = np.abs(self._encoder.encode_codes(codes)).max(axis=0)
        self._largest = np.where(largest > 0, largest, 1).astype(np.float32)

    def __call__(self, codes: Codes) -> Tensor:
        """Return scaled encodings, ``(n, d)``; entries of known architectures are at most 1."""
        return torch.from_numpy(self._encoder.encode_codes(codes) / self._largest)

    def body(self, width: int) -> nn.Module:
        """Return first layers, ``(members, n, d)`` -> ``(members, n, width)``."""
        layout = self._encoder.layout
        if layout.nodes:
            return _GraphBody(GraphColumns(layout), width)
        return nn.Sequential(
            Linears(len(self._encoder), width), nn.ReLU(), Linears(width, width), nn.ReLU()
        )


class _GraphBody(nn.Module):
    """Four graph convolutions along the edges, then the state of a global node."""

    def __init__(self, columns: GraphColumns, width: int) -> None:
        super().__init__()
        self.columns = columns
        widths = [columns.operations + 1, *[width] * _GRAPH_LAYERS]
        # Nodes sum their inputs, so initial weights are small: -0.05 to 0.05.
        self.convolutions = nn.ModuleList(
            Linears(before, width, 0.05 * (before / 3) ** 0.5) for before in widths[:-1]
        )

    def forward(self, x: Tensor) -> Tensor:
        operations = self.columns.operations_of(x)
        adjacency = nn.functional.pad(self.columns.adjacency_of(x), (0, 1, 0, 1))
        adjacency[..., :-1, -1] = (operations.sum(dim=-1) > 0).float()
        adjacency = (adjacency + torch.eye(adjacency.shape[-1])).mT
        state = nn.functional.pad(operations, (0, 1, 0, 1))
        state[..., -1, -1] = 1
        for convolution in self.convolutions:
            state = torch.relu(adjacency @ convolution(state))
        return state[..., -1, :]


@dataclass(frozen=True)
class Scale:
    """Unit of a device's latencies in which nearly all are between 0 and 1.

    Both methods scale a device's latencies from the least to the greatest. For a new device, these
    are unknown: the extremes of a few samples are not those of all. So here the mean is 0.5, with
    three standard deviations to each side.
    """

    mean_ms: float
    sd_ms: float

    @classmethod
    def of(cls, latency_ms: Floats) -> Scale:
        return cls(*mean_and_sd(latency_ms, np.ones(len(latency_ms))))

    def into(self, latency_ms: Floats) -> Tensor:
        return torch.from_numpy((latency_ms - self.mean_ms) / (6 * self.sd_ms) + 0.5).float()

    def back(self, values: Tensor) -> Floats:
        scaled: Floats = values.numpy().astype(np.float64)
        return self.mean_ms + 6 * self.sd_ms * (scaled - 0.5)
