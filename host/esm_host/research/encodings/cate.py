"""CATE: encoding by a transformer trained on pairs of architectures of similar FLOPs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esm_host.encoding.cost import CostEncoder
from esm_host.predictors.networks import batches
from esm_host.research.encodings.learned import Graphs, LearnedEncoder
from esm_models.space import Codes, SearchSpace

_CORRUPTED = 0.2
_MASKED = 0.8
"""Share of the corrupted operations that are masked; the others become a random operation."""
_SMOOTHING = 0.1
_WEIGHT_DECAY = 0.01
_WARM_UP = 100


class CATEEncoder(LearnedEncoder):
    """State of a transformer at the output node (Yan et al. 2021).

    "CATE: Computation-aware Neural Architecture Encoding with Transformers". Two architectures of
    similar FLOPs pass through a transformer in which a node attends to its predecessors. Together
    they pass through a second one, in which every node attends to all of both. The task is to
    predict corrupted operations. A fifth of the operations is corrupted, most by a mask, and labels
    are smoothed. These figures, the width of 64, the heads and the rates are those of the authors'
    code. The vector of an architecture comes from the first transformer.

    Differences: The network is smaller, 3 and 2 layers instead of 12 and 24. It is trained on 5,000
    random architectures, in minutes on one core. A node also has the other features of the graph
    (unit, resolution), and attends to itself. Partners are similar by a share of their FLOPs
    instead of a fixed difference, as spaces differ.

    Args:
        space: Search space.
        dimension: Length of the vectors; a multiple of ``heads``.
        samples: Number of architectures drawn, if none are given.
        layers: Layers of the transformer of one architecture.
        pair_layers: Layers of the transformer of two architectures.
        heads: Number of attention heads.
        partners: Number of partners of each architecture.
        alike: Largest difference of a partner's FLOPs, as a share.
        epochs: Number of epochs over the pairs.
        batch_size: Pairs per step.
        learning_rate: Largest learning rate of AdamW. It rises for 100 steps, then falls linearly
            to zero.
        seed: Random seed of architectures, partners, initial weights, batches and corruption.
    """

    name = "cate"

    def __init__(
        self,
        space: SearchSpace,
        dimension: int = 64,
        samples: int = 5000,
        layers: int = 3,
        pair_layers: int = 2,
        heads: int = 8,
        partners: int = 2,
        alike: float = 0.05,
        epochs: int = 4,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.dimension = dimension
        self.samples = samples
        self.layers = layers
        self.pair_layers = pair_layers
        self.heads = heads
        self.partners = partners
        self.alike = alike
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seed = seed
        super().__init__(space)

    def _network(self, nodes: int, features: int, operations: int) -> nn.Module:
        return _Pairwise(
            features, operations, self.dimension, self.layers, self.pair_layers, self.heads
        )

    def _train(self, network: nn.Module, graphs: Graphs, codes: Codes) -> None:
        assert isinstance(network, _Pairwise)
        pairs = torch.from_numpy(self._pairs(codes))
        steps = self.epochs * -(-len(pairs) // self.batch_size)
        warm_up = min(_WARM_UP, steps // 2)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: (
                (step + 1) / (warm_up + 1) if step < warm_up else (steps - step) / (steps - warm_up)
            ),
        )
        for (rows,) in batches([len(pairs)], [self.seed], self.batch_size, self.epochs):
            both = graphs[pairs[rows].flatten()]  # partners are neighbours
            optimizer.zero_grad()
            network(both).backward()
            optimizer.step()
            schedule.step()

    def _pairs(self, codes: Codes) -> NDArray[np.int64]:
        """Return the rows of partners, ``(pairs, 2)``."""
        costs = CostEncoder(self.space)
        written = "written." * self.space.prunes
        column = costs.columns.index(f"{written}all.mflops")
        mflops = costs.encode_codes(codes)[:, column].astype(np.float64)
        order = np.argsort(mflops, kind="stable")
        place = np.repeat(np.arange(len(order)), self.partners)
        # Partners are among those before it in order whose FLOPs are within the share.
        first = np.searchsorted(mflops[order], mflops[order][place] * (1 - self.alike))
        chance = np.random.default_rng(self.seed).random(len(place))
        other = first + np.floor(chance * (place - first)).astype(np.int64)
        pairs = np.stack([order[place], order[other]], axis=1)
        found = pairs[first < place]
        return found if len(found) else pairs

    def _vectors(self, network: nn.Module, graphs: Graphs) -> Tensor:
        assert isinstance(network, _Pairwise)
        return network.read(graphs, graphs.operations, None)[:, -1]


class _Pairwise(nn.Module):
    def __init__(
        self,
        features: int,
        operations: int,
        dimension: int,
        layers: int,
        pair_layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.heads = heads
        self.embedding = nn.Linear(features, dimension)
        self.mask = nn.Parameter(torch.randn(dimension) * 0.1)
        self.segments = nn.Parameter(torch.randn(2, dimension) * 0.1)
        self.single = nn.ModuleList(_Block(dimension, heads, 2 * dimension) for _ in range(layers))
        self.single_norm = nn.LayerNorm(dimension)
        self.pair = nn.ModuleList(
            _Block(dimension, heads, 4 * dimension) for _ in range(pair_layers)
        )
        self.pair_norm = nn.LayerNorm(dimension)
        self.name = nn.Sequential(
            nn.Linear(dimension, dimension), nn.Tanh(), nn.Linear(dimension, operations)
        )

    def read(self, graphs: Graphs, operations: Tensor, masked: Tensor | None) -> Tensor:
        """Return states, ``(n, nodes, dimension)``; nodes that are ``masked`` have no operation."""
        state = self.embedding(operations)
        if masked is not None:
            state = state + masked[..., None] * self.mask
        may_attend = _leads_to(graphs.adjacency).mT[:, None]
        for block in self.single:
            state = block(state, may_attend)
        normed: Tensor = self.single_norm(state)
        return normed

    def forward(self, graphs: Graphs) -> Tensor:
        """Return the loss; graphs 2 i and 2 i + 1 are a pair."""
        present = graphs.present
        corrupted = (torch.rand(present.shape) < _CORRUPTED) & present
        masked = corrupted & (torch.rand(present.shape) < _MASKED)
        operation = graphs.operations[..., : self.operations]
        other = torch.randint(self.operations, present.shape)
        given = graphs.operations.clone()
        given[..., : self.operations][corrupted] = nn.functional.one_hot(
            other[corrupted], self.operations
        ).float()
        given[..., : self.operations][masked] = 0

        state = self.read(graphs, given, masked.float())
        state = state.unflatten(0, (-1, 2)) + self.segments[:, None]
        state = state.flatten(1, 2)
        may_attend = present.unflatten(0, (-1, 2)).flatten(1)[:, None, None]
        for block in self.pair:
            state = block(state, may_attend)
        named: Tensor = self.name(self.pair_norm(state)).view(*present.shape, -1)
        if not corrupted.any():
            return named.sum() * 0  # nothing is corrupted
        loss: Tensor = nn.functional.cross_entropy(
            named[corrupted], operation[corrupted].argmax(dim=-1), label_smoothing=_SMOOTHING
        )
        return loss


class _Block(nn.Module):
    """Attention, then a layer per node, both with a residual connection."""

    def __init__(self, dimension: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(dimension)
        self.wanted = nn.Linear(dimension, 3 * dimension)
        self.gathered = nn.Linear(dimension, dimension)
        self.nodewise = nn.Sequential(
            nn.LayerNorm(dimension),
            nn.Linear(dimension, hidden),
            nn.ReLU(),
            nn.Linear(hidden, dimension),
        )
        self.dropout = nn.Dropout(0.1)

    def forward(self, state: Tensor, may_attend: Tensor) -> Tensor:
        """Return new states, ``(n, nodes, dimension)``.

        Args:
            state: States, ``(n, nodes, dimension)``.
            may_attend: Attention mask, ``(n, 1, nodes or 1, nodes)``.
        """
        heads = self.wanted(self.before(state)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.movedim(2, 0).transpose(2, 3)
        found = nn.functional.scaled_dot_product_attention(query, key, value, may_attend)
        state = state + self.dropout(self.gathered(found.transpose(1, 2).flatten(2)))
        past: Tensor = state + self.dropout(self.nodewise(state))
        return past


def _leads_to(adjacency: Tensor) -> Tensor:
    """Return whether there is a path from row to column, or both are one node, ``(n, N, N)``."""
    nodes = adjacency.shape[-1]
    ways = adjacency + torch.eye(nodes)
    length = 1
    while length < nodes:
        ways = ((ways @ ways) > 0).float()
        length *= 2
    found: Tensor = ways > 0
    return found
