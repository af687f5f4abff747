"""Graph convolutions over the blocks of a network: GCN and BONAS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import BayesianRidge
from torch import Tensor, nn

from esm_host.encoding.base import Layout
from esm_host.predictors.base import Floats, Samples
from esm_host.predictors.networks import (
    ROWS,
    GraphColumns,
    GraphPredictor,
    Linears,
    Network,
    one_thread,
)

_FOR_RELU = 2**0.5
"""Gain of initial weights that keeps the scale of states from layer to layer (He et al.)."""


class GCNPredictor(GraphPredictor["_BothDirections"]):
    """Graph convolutions along and against the edges, then a small MLP (Wen et al. 2020).

    "Neural Predictor for Neural Architecture Search". There are three layers. In each a node takes
    the mean of itself and its predecessors, and that of itself and its successors. Each passes
    through its own weights and a ReLU, and the mean of both is the new state. The mean over all
    nodes passes through one hidden layer. The paper's network is wider; ours trains in seconds on
    one core.

    Learning rate and batches were chosen on NAS-Bench-201 latencies of 1080ti_1, for which we
    report no figures. Width and epochs keep the training to seconds. Operations stay one-hot;
    latencies are standardised.

    Args:
        layout: Layout of the encoding ``graph``.
        hidden: Width of a node's state.
        layers: Number of graph convolutions.
        head: Width of the hidden layer after them.
        learning_rate: Hyperparameter of :class:`esm_host.predictors.mlp.MLPPredictor`, as the
            following ones.
    """

    def __init__(
        self,
        layout: Layout | None = None,
        hidden: int = 32,
        layers: int = 3,
        head: int = 64,
        learning_rate: float = 0.01,
        weight_decay: float = 1e-5,
        epochs: int = 20,
        min_steps: int = 600,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        self.layout = layout
        self.hidden = hidden
        self.layers = layers
        self.head = head
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.seed = seed

    def _network(self, encodings: NDArray[np.float32]) -> _BothDirections:
        columns = self.graph(encodings.shape[1])
        return _BothDirections(columns, self.hidden, self.layers, self.head)


class BONASPredictor(GraphPredictor["_GlobalNode"]):
    """Embedding of a graph network with Bayesian linear regression (Shi et al. 2020).

    "Bridging the Gap between Sample-based and One-shot Neural Architecture Search with BONAS". The
    graph convolutions are those of Kipf and Welling, which ignore the direction of edges. A global
    node is joined to all blocks; its last state is the embedding. The network is trained with a
    linear output. A Bayesian linear regression then replaces this output, which gives the
    uncertainty, too. The paper has a sigmoid output and larger weights for samples of high
    accuracy. Latencies have no upper end, so here the output is linear, the loss squared and the
    weights equal.

    Hyperparameters were chosen as those of :class:`GCNPredictor`.

    Args:
        layout: Layout of the encoding ``graph``.
        hidden: Width of a node's state, and of the embedding.
        layers: Number of graph convolutions.
        learning_rate: Hyperparameter of :class:`esm_host.predictors.mlp.MLPPredictor`, as the
            following ones.
    """

    knows_std = True

    def __init__(
        self,
        layout: Layout | None = None,
        hidden: int = 32,
        layers: int = 3,
        learning_rate: float = 0.005,
        weight_decay: float = 1e-5,
        epochs: int = 20,
        min_steps: int = 600,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        self.layout = layout
        self.hidden = hidden
        self.layers = layers
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.seed = seed

    def _network(self, encodings: NDArray[np.float32]) -> _GlobalNode:
        return _GlobalNode(self.graph(encodings.shape[1]), self.hidden, self.layers)

    @classmethod
    def _fit_all(cls, predictors: Sequence[Self], samples: Sequence[Samples]) -> None:
        super()._fit_all(predictors, samples)
        for predictor, (encodings, latency_ms, weights) in zip(predictors, samples, strict=True):
            y = (latency_ms - predictor.mean_ms_) / predictor.sd_ms_
            embeddings = predictor._embeddings(encodings)
            predictor.regression_ = BayesianRidge().fit(embeddings, y, sample_weight=weights)

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        return self._predict_with_std(encodings)[0]

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, sd = self.regression_.predict(self._embeddings(encodings), return_std=True)
        return mean * self.sd_ms_ + self.mean_ms_, sd * self.sd_ms_

    def _embeddings(self, encodings: NDArray[np.float32]) -> Floats:
        with one_thread(), torch.inference_mode():
            parts = [self.network_.embed(x[None])[0] for x in torch.tensor(encodings).split(ROWS)]
        embeddings: Floats = torch.cat(parts).numpy().astype(np.float64)
        return embeddings


class _BothDirections(Network):
    def __init__(self, columns: GraphColumns, hidden: int, layers: int, head: int) -> None:
        super().__init__()
        self.columns = columns
        widths = [columns.operations, *[hidden] * layers]
        # The weights of both directions are joined: one product instead of two.
        self.convolutions = nn.ModuleList(
            Linears(width, 2 * hidden, _FOR_RELU) for width in widths[:-1]
        )
        self.head = nn.Sequential(Linears(hidden, head), nn.ReLU(), Linears(head, 1))

    def forward(self, x: Tensor) -> Tensor:
        state = self.columns.operations_of(x)
        adjacency = self.columns.adjacency_of(x)
        # (members, n, directions, nodes, nodes), halved so that the sum is the mean.
        neighbours = _mean_of_neighbours(torch.stack([adjacency.mT, adjacency], dim=2)) / 2
        for convolution in self.convolutions:
            directed = convolution(state).unflatten(-1, (2, -1)).transpose(2, 3)
            state = torch.relu(neighbours @ directed).sum(dim=2)
        output: Tensor = self.head(state.mean(dim=2))
        return output[..., 0]


class _GlobalNode(Network):
    def __init__(self, columns: GraphColumns, hidden: int, layers: int) -> None:
        super().__init__()
        self.columns = columns
        # The global node has an operation of its own.
        widths = [columns.operations + 1, *[hidden] * layers]
        self.convolutions = nn.ModuleList(
            Linears(width, hidden, _FOR_RELU) for width in widths[:-1]
        )
        self.output = Linears(hidden, 1)

    def embed(self, x: Tensor) -> Tensor:
        """Convert ``(members, n, d)`` to embeddings ``(members, n, hidden)``."""
        state = nn.functional.pad(self.columns.operations_of(x), (0, 1, 0, 1))
        state[..., -1, -1] = 1
        adjacency = nn.functional.pad(self.columns.adjacency_of(x), (0, 1, 0, 1))
        adjacency[..., :-1, -1] = 1
        neighbours = _normalised(adjacency)
        for convolution in self.convolutions:
            state = torch.relu(neighbours @ convolution(state))
        return state[..., -1, :]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.output(self.embed(x))
        return output[..., 0]


def _mean_of_neighbours(adjacency: Tensor) -> Tensor:
    """Return the matrix that averages a node with its successors."""
    edges = adjacency + torch.eye(adjacency.shape[-1])
    return edges / edges.sum(dim=-1, keepdim=True)


def _normalised(adjacency: Tensor) -> Tensor:
    """Return undirected edges and self-loops, divided by the root of both degrees."""
    edges = adjacency + adjacency.mT + torch.eye(adjacency.shape[-1])
    scale = edges.sum(dim=-1).rsqrt()
    return edges * scale[..., None] * scale[..., None, :]
