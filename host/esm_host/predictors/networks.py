"""Base classes of networks; several networks are trained in the same steps."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esm_host.encoding.base import Layout
from esm_host.predictors.base import Floats, Predictor, Samples
from esm_protos.text import counted

ROWS = 4096  # rows per step of a prediction, to bound the memory


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread, as threads slow down steps this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Linears(nn.Module):
    """Linear layer of every member: ``(members, ..., inputs)`` -> ``(members, ..., outputs)``.

    It is made for one member; :func:`stacked` joins several.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 3**-0.5) -> None:
        """Draw weights and biases with a standard deviation of ``gain / sqrt(inputs)``."""
        super().__init__()
        bound = gain * (3 / inputs) ** 0.5
        self.weight = nn.Parameter(torch.empty(1, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.baddbmm(self.bias, x.flatten(1, -2), self.weight)
        return out.view(*x.shape[:-1], -1)


class Network(nn.Module):
    """Network of members, which are the first axis of all parameters and buffers."""

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised latencies ``(members, n)`` of encodings ``(members, n, d)``."""
        raise NotImplementedError

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of every sample, ``(members, n)``."""
        error: Tensor = self(x) - y
        return error * error


N = TypeVar("N", bound=Network)


def stacked(networks: Sequence[N]) -> N:
    """Return one network of all members, with memory of its own."""
    together = copy.deepcopy(networks[0])
    parts = zip(*(network.state_dict().values() for network in networks), strict=True)
    for tensor, part in zip(together.state_dict(keep_vars=True).values(), parts, strict=True):
        tensor.data = torch.cat(part)
    return together


def unstack(together: Network, networks: Sequence[Network]) -> None:
    """Copy the parameters of the joint network to its members, which reverses :func:`stacked`."""
    parts = zip(*(network.parameters() for network in networks), strict=True)
    for parameter, part in zip(together.parameters(), parts, strict=True):
        for number, each in enumerate(part):
            each.data = parameter.detach()[number : number + 1].clone()


class NetworkPredictor(Predictor, Generic[N]):
    """Predictor by a network, trained by Adam with a cosine schedule.

    Latencies are standardised with the weights of the samples. Subclasses have the hyperparameters
    ``learning_rate``, ``weight_decay``, ``epochs``, ``min_steps``, ``batch_size`` and ``seed`` of
    :class:`MLPPredictor`.
    """

    learning_rate: float
    weight_decay: float
    epochs: int
    min_steps: int
    batch_size: int
    seed: int

    @abstractmethod
    def _network(self, encodings: NDArray[np.float32]) -> N:
        """Draw a network of one member for such encodings."""

    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        self._fit_all([self], [(encodings, latency_ms, weights)])

    @classmethod
    def _fit_all(cls, predictors: Sequence[Self], samples: Sequence[Samples]) -> None:
        with one_thread():
            targets = [
                predictor._prepare(*part)
                for predictor, part in zip(predictors, samples, strict=True)
            ]
            together = stacked([predictor.network_ for predictor in predictors])
            _train(together, predictors, samples, targets)
            unstack(together, [predictor.network_ for predictor in predictors])

    def _prepare(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> Tensor:
        """Draw the network and return the standardised latencies."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_ = self._network(encodings)
        self.mean_ms_, self.sd_ms_ = mean_and_sd(latency_ms, weights)
        return torch.from_numpy(((latency_ms - self.mean_ms_) / self.sd_ms_).astype(np.float32))

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        with one_thread(), torch.inference_mode():
            parts = [self.network_(x[None])[0] for x in torch.from_numpy(encodings).split(ROWS)]
        standardised: Floats = torch.cat(parts).numpy().astype(np.float64)
        return standardised * self.sd_ms_ + self.mean_ms_


class GraphPredictor(NetworkPredictor[N]):
    """Network on graphs; it needs the encoding ``graph`` and its layout."""

    needs_graph = True

    layout: Layout | None

    def graph(self, columns: int) -> GraphColumns:
        """Return the columns of the graph in encodings of this width.

        Raises:
            ValueError: the encodings are not graphs.
        """
        if self.layout is None or not self.layout.nodes:
            raise ValueError(
                f"{type(self).__name__} needs graphs: choose the encoding graph and pass "
                "layout=encoder.layout"
            )
        last = max(end for _, end in self.layout.groups.values())
        if last > columns:
            raise ValueError(
                f"the layout has {counted(last, 'column')}, the encodings {columns}: pass the "
                "layout of the encoder that made them"
            )
        return GraphColumns(self.layout)


class GraphColumns:
    """Columns of nodes and edges in flat encodings."""

    def __init__(self, layout: Layout) -> None:
        self.nodes = layout.nodes
        self._operations = slice(*layout.groups["operations"])
        self._adjacency = slice(*layout.groups["adjacency"])
        begin, end = layout.groups["operations"]
        self.operations = (end - begin) // layout.nodes

    def operations_of(self, x: Tensor) -> Tensor:
        """Convert ``(members, n, d)`` to ``(members, n, nodes, operations)``."""
        operations: Tensor = x[..., self._operations]
        return torch.unflatten(operations, -1, (self.nodes, self.operations))

    def adjacency_of(self, x: Tensor) -> Tensor:
        """Convert ``(members, n, d)`` to ``(members, n, nodes, nodes)``."""
        adjacency: Tensor = x[..., self._adjacency]
        return torch.unflatten(adjacency, -1, (self.nodes, self.nodes))


def mean_and_sd(values: Floats, weights: Floats) -> tuple[float, float]:
    """Return the mean and standard deviation of a weighted sample.

    A standard deviation of 0 becomes a tenth of the mean. It can then be a divisor, and the random
    output of a new network stays small beside the mean.
    """
    mean = float(np.average(values, weights=weights))
    sd = float(np.average((values - mean) ** 2, weights=weights)) ** 0.5
    return mean, sd if sd > 1e-9 * mean else mean / 10


def batches(
    sizes: Sequence[int], seeds: Sequence[int], batch_size: int, epochs: int
) -> Iterator[Tensor]:
    """Yield rows of consecutive data sets, ``(members, batch)``, shuffled every epoch.

    An epoch is as long as the largest data set needs; smaller ones are repeated.
    """
    offsets = torch.tensor(np.cumsum([0, *sizes[:-1]]))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    longest = max(sizes)
    for _ in range(epochs):
        orders = [
            torch.randperm(size, generator=generator).repeat(-(-longest // size))[:longest]
            for size, generator in zip(sizes, generators, strict=True)
        ]
        yield from torch.split(torch.stack(orders) + offsets[:, None], batch_size, dim=1)


def _train(
    network: Network,
    members: Sequence[NetworkPredictor[N]],
    samples: Sequence[Samples],
    targets: Sequence[Tensor],
) -> None:
    first = members[0]
    x = torch.from_numpy(np.concatenate([part[0] for part in samples]))
    w = torch.from_numpy(np.concatenate([part[2] for part in samples]).astype(np.float32))
    y = torch.cat(list(targets))
    sizes = [len(target) for target in targets]
    steps = -(-max(sizes) // first.batch_size)
    epochs = max(first.epochs, -(-first.min_steps // steps))
    optimizer = torch.optim.Adam(
        network.parameters(), lr=first.learning_rate, weight_decay=first.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for rows in batches(sizes, [member.seed for member in members], first.batch_size, epochs):
        optimizer.zero_grad()
        # The sum over members: each one's gradient is that of its own mean.
        (w[rows] * network.losses(x[rows], y[rows])).mean(dim=1).sum().backward()
        optimizer.step()
        schedule.step()
