"""Arch2Vec: encoding by an autoencoder of graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_host.predictors.networks import batches
from esm_host.research.encodings.learned import Graphs, LearnedEncoder
from esm_models.space import Codes, SearchSpace

_LARGEST_GRADIENT = 5.0


class Arch2VecEncoder(LearnedEncoder):
    """Latent vector of a variational graph isomorphism autoencoder (Yan et al. 2020).

    "Does Unsupervised Architecture Representation Learning Help Neural Architecture Search?" Four
    layers of a graph isomorphism network, along and against the edges, give a normal distribution
    per node. The decoder takes a draw of each node. It reconstructs the operation by a linear layer
    and a softmax, and the edges by products of nodes. The loss adds the Kullback-Leibler divergence
    to the standard normal. The vector of an architecture is the mean of its nodes' means. Sizes,
    rates and the weight of the divergence (one over the number of nodes in a batch) are those of
    the authors' code. The dimension, 16 there, is that of NASFLAT (Akhauri and Abdelfattah 2024,
    Section 4.3).

    Differences: The loss of an operation is its cross-entropy, not a loss per entry. With the
    latter, 5,000 architectures of FBNet taught the network edges but no operations. The other
    features of a node (unit, resolution) are reconstructed, too. Absent blocks count as zeros.

    Args:
        space: Search space.
        dimension: Length of the vectors.
        samples: Number of architectures drawn, if none are given.
        hidden: Width of a node's state.
        layers: Layers of the graph isomorphism network.
        dropout: Share of latent entries hidden from the decoder.
        epochs: Number of epochs.
        batch_size: Architectures per step.
        learning_rate: Learning rate of Adam.
        seed: Random seed of architectures, initial weights, batches and draws.
    """

    name = "arch2vec"

    def __init__(
        self,
        space: SearchSpace,
        dimension: int = 32,
        samples: int = 5000,
        hidden: int = 128,
        layers: int = 4,
        dropout: float = 0.3,
        epochs: int = 8,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.dimension = dimension
        self.samples = samples
        self.hidden = hidden
        self.layers = layers
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seed = seed
        super().__init__(space)

    def _network(self, nodes: int, features: int, operations: int) -> nn.Module:
        return _Autoencoder(
            features, operations, self.hidden, self.layers, self.dimension, self.dropout
        )

    def _train(self, network: nn.Module, graphs: Graphs, codes: Codes) -> None:
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate, fused=True)
        for (rows,) in batches([len(graphs)], [self.seed], self.batch_size, self.epochs):
            optimizer.zero_grad()
            loss: Tensor = network(graphs[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            optimizer.step()

    def _vectors(self, network: nn.Module, graphs: Graphs) -> Tensor:
        assert isinstance(network, _Autoencoder)
        mean, _ = network.encode(graphs)
        return (mean * graphs.present[..., None]).mean(dim=1)


class _Autoencoder(nn.Module):
    def __init__(
        self,
        features: int,
        operations: int,
        hidden: int,
        layers: int,
        dimension: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.operations = operations
        widths = [features, *[hidden] * layers]
        self.own = nn.Parameter(torch.zeros(layers))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
            )
            for width in widths[:-1]
        )
        self.mean = nn.Linear(hidden, dimension)
        self.log_sd = nn.Linear(hidden, dimension)
        self.dropout = nn.Dropout(dropout)
        self.rebuilt = nn.Linear(dimension, features)

    def encode(self, graphs: Graphs) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of standard deviations, ``(n, nodes, dimension)`` each."""
        neighbours = graphs.adjacency + graphs.adjacency.mT
        state = graphs.operations
        for own, layer in zip(self.own, self.layers, strict=True):
            gathered = (1 + own) * state + neighbours @ state
            state = layer(gathered.flatten(0, 1)).unflatten(0, gathered.shape[:2])
        return self.mean(state), self.log_sd(state)

    def forward(self, graphs: Graphs) -> Tensor:
        """Return the loss."""
        mean, log_sd = self.encode(graphs)
        latent = self.dropout(mean + log_sd.exp() * torch.randn_like(mean))
        rebuilt, truth, present = self.rebuilt(latent), graphs.operations, graphs.present
        operations = nn.functional.cross_entropy(
            rebuilt[present][:, : self.operations],
            truth[present][:, : self.operations].argmax(dim=-1),
        )
        # Edges lead from a node to a later one: the other half is zero.
        later = torch.ones_like(graphs.adjacency[0]).triu(1).bool()
        edges = _entries((latent @ latent.mT)[:, later], graphs.adjacency[:, later])
        divergence = 0.5 * (mean**2 + (2 * log_sd).exp() - 1 - 2 * log_sd).sum(dim=-1)
        loss: Tensor = operations + edges + divergence.mean() / divergence.numel()
        if self.operations < truth.shape[-1]:
            loss = loss + _entries(rebuilt[..., self.operations :], truth[..., self.operations :])
        return loss


def _entries(given: Tensor, truth: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(given, truth)
