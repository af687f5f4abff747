"""CATE: architectures as a transformer reads them that compared those of like computation."""

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
"""Of the corrupted operations; the others become any operation."""
_SMOOTHING = 0.1
_WEIGHT_DECAY = 0.01
_WARM_UP = 100


class CATEEncoder(LearnedEncoder):
    """A transformer's state at the output node (Yan et al. 2021).

    "CATE: Computation-aware Neural Architecture Encoding with Transformers". Two architectures of
    about the same FLOPs go through a transformer in which a node attends to what leads to it, then
    together through one in which every node attends to all of both; in the end, operations that
    were hidden are to be named. A fifth of the operations is corrupted, most by a mask, and labels
    are smoothed, as in the authors' code, whose width of 64, heads and rates these are, too. An
    architecture's vector comes from the first transformer.

    Where this differs: It is smaller, 3 and 2 layers instead of 12 and 24, and learns from 5,000
    drawn architectures, to be ready in minutes on one core. A node also knows what else the graph
    says of it (unit, resolution), and attends to itself. Partners are alike by a share of their
    FLOPs rather than by a number of them, since spaces differ.

    Args:
        dimension: of the vectors; a multiple of ``heads``.
        samples: architectures that are drawn, unless some are given.
        layers: of the transformer that reads one architecture.
        pair_layers: of that which reads two.
        heads: of attention.
        partners: of each architecture.
        alike: how much less FLOPs a partner may have, as a share.
        epochs: passes over the pairs.
        batch_size: pairs per step.
        learning_rate: of AdamW; it grows for 100 steps, then falls to zero along a line.
        seed: of the drawn architectures, partners, initial weights, batches and corruption.
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
            both = graphs[pairs[rows].flatten()]  # pairs lie side by side
            optimizer.zero_grad()
            network(both).backward()
            optimizer.step()
            schedule.step()

    def _pairs(self, codes: Codes) -> NDArray[np.int64]:
        """Rows of partners, ``(pairs, 2)``."""
        costs = CostEncoder(self.space)
        written = "written." * self.space.prunes
        column = costs.columns.index(f"{written}all.mflops")
        mflops = costs.encode_codes(codes)[:, column].astype(np.float64)
        order = np.argsort(mflops, kind="stable")
        place = np.repeat(np.arange(len(order)), self.partners)
        # Of those before it in order; from where FLOPs are within the share.
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
        """States, ``(n, nodes, dimension)``; of nodes that are ``masked`` without operation."""
        state = self.embedding(operations)
        if masked is not None:
            state = state + masked[..., None] * self.mask
        may_attend = _leads_to(graphs.adjacency).mT[:, None]
        for block in self.single:
            state = block(state, may_attend)
        normed: Tensor = self.single_norm(state)
        return normed

    def forward(self, graphs: Graphs) -> Tensor:
        """The loss; graphs 2 i and 2 i + 1 are a pair."""
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
            return named.sum() * 0  # nothing is hidden
        loss: Tensor = nn.functional.cross_entropy(
            named[corrupted], operation[corrupted].argmax(dim=-1), label_smoothing=_SMOOTHING
        )
        return loss


class _Block(nn.Module):
    """Attention, then a layer for each node, both beside what goes past them."""

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
        """``(n, nodes, dimension)`` and ``(n, 1, nodes or 1, nodes)``."""
        heads = self.wanted(self.before(state)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.movedim(2, 0).transpose(2, 3)
        found = nn.functional.scaled_dot_product_attention(query, key, value, may_attend)
        state = state + self.dropout(self.gathered(found.transpose(1, 2).flatten(2)))
        past: Tensor = state + self.dropout(self.nodewise(state))
        return past


def _leads_to(adjacency: Tensor) -> Tensor:
    """Whether there is a way from row to column, of nodes to themselves too, ``(n, N, N)``."""
    nodes = adjacency.shape[-1]
    ways = adjacency + torch.eye(nodes)
    length = 1
    while length < nodes:
        ways = ((ways @ ways) > 0).float()
        length *= 2
    found: Tensor = ways > 0
    return found
