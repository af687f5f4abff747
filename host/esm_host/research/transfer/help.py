"""HELP: a predictor that is ready to learn a new device, given how it takes to ten references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from esm_host.predictors.linear import RidgePredictor
from esm_host.predictors.networks import ROWS, Linears, one_thread
from esm_host.research.transfer.bodies import ArchitectureInput, Scale, check_encoding
from esm_host.research.transfer.weights import load_weights, weights
from esm_host.transfer.base import FewShotPredictor, Floats
from esm_host.transfer.known import KnownLatencies, keys
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace

_FIRST_RATE = 1e-3
"""Of the inner steps, before it is learned parameter by parameter."""
_NOISE = 0.01
"""How much the modulation, about 1 in size, changes parameters."""

Parameters = Mapping[str, Tensor]
"""Of a network, with tasks as their first axis."""


class HELPPredictor(FewShotPredictor):
    """Meta-learning over devices (Lee et al. 2021).

    "HELP: Hardware-adaptive Efficient Latency Prediction for NAS via Meta-Learning". A device is
    known by its latencies for ten reference architectures, from 0 for the least to 1 for the
    greatest. The network reads the architecture (one-hot, or by graph convolutions in spaces that
    have a wiring) and that embedding, and joins both. A task is a device: from ``support`` of its
    latencies, ``inner_steps`` steps of gradient descent lead to the network that predicts others
    (``query``), and all is trained so that these predictions are good: the initial parameters, a
    learning rate for each of them (Meta-SGD), and a small network that, from the embedding, draws
    factors for the inputs and a shift for the outputs of the last three layers, under a
    Kullback-Leibler penalty to the standard normal. A new device's prediction is the mean over
    ``draws`` of these. Sizes, rates and steps are those of the authors' code.

    Where this differs: The references are drawn from the architectures that most sources measured
    and are in :attr:`references_` after learning; the method as published measures them on the new
    device, so give them among the samples to have it. Of those not among the samples the latency
    is estimated: by a ridge regression of the new device's latencies on those of the sources, at
    the samples. Latencies are scaled by :class:`esm_host.research.transfer.bodies.Scale`.
    Nothing is left out of the sources (there, a tenth of the slowest and of the fastest), and
    there is no choice of the best episode, which takes further devices.

    Args:
        encoding: of architectures; by default as
            :class:`esm_host.research.transfer.bodies.ArchitectureInput` says.
        references: how many reference architectures.
        width: of the layers that read architecture and embedding; of those after them, twice that.
        episodes: steps of meta-learning.
        tasks: devices in each; all, where there are fewer.
        support: samples per device that the inner steps see.
        query: further samples per device that the outcome is judged by.
        inner_steps: of gradient descent, in learning and in adapting.
        learning_rate: of Adam, over episodes.
        divergence: weight of the Kullback-Leibler penalty.
        draws: of the modulation, when predicting.
        seed: of references, initial weights, episodes and draws.
    """

    absolute = True
    rates_: dict[str, Tensor]
    least_sources = 2  # what devices have in common is told by several

    def __init__(
        self,
        encoding: str | None = None,
        references: int = 10,
        width: int = 100,
        episodes: int = 2000,
        tasks: int = 8,
        support: int = 10,
        query: int = 200,
        inner_steps: int = 2,
        learning_rate: float = 1e-4,
        divergence: float = 0.1,
        draws: int = 10,
        seed: int = 0,
    ) -> None:
        self.encoding = encoding
        self.references = references
        self.width = width
        self.episodes = episodes
        self.tasks = tasks
        self.support = support
        self.query = query
        self.inner_steps = inner_steps
        self.learning_rate = learning_rate
        self.divergence = divergence
        self.draws = draws
        self.seed = seed

    # Learning

    def _learn(self, sources: Sequence[Source]) -> None:
        with one_thread(), torch.random.fork_rng(devices=[]):
            rng = self._prepare(sources)
            devices = [
                (self.input_(source.codes), Scale.of(source.latency_ms).into(source.latency_ms))
                for source in sources
            ]
            own = self.known_.at(self.references_).T
            self._meta_learn(devices, torch.stack([_embedding(each) for each in own]), rng)

    def _restore(
        self, sources: Sequence[Source], trained: Mapping[str, NDArray[np.generic]]
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            self._prepare(sources)
        load_weights(self.network_, trained, "network")
        load_weights(self.modulator_, trained, "modulator")
        self.rates_ = {name: torch.from_numpy(trained[f"rate.{name}"]) for name in self.rates_}

    def trained(self) -> Mapping[str, NDArray[np.generic]]:
        rates = {f"rate.{name}": rate.detach().numpy() for name, rate in self.rates_.items()}
        return {
            **weights(self.network_, "network"),
            **weights(self.modulator_, "modulator"),
            **rates,
        }

    def check(self, space: SearchSpace, sources: Sequence[str]) -> None:
        super().check(space, sources)
        check_encoding(space, self.encoding)

    def _prepare(self, sources: Sequence[Source]) -> np.random.Generator:
        """Draw references and networks; return the generator that goes on to draw episodes."""
        rng = np.random.default_rng(self.seed)
        self.known_ = KnownLatencies(sources)
        shared = self.known_.shared()
        chosen = rng.permutation(len(shared))[: self.references]
        self.references_ = shared[np.sort(chosen)]
        self.input_ = ArchitectureInput(
            self.space, self.encoding, np.concatenate([source.codes for source in sources])
        )
        torch.manual_seed(self.seed)
        self.network_ = _Joined(self.input_.body(self.width), len(self.references_), self.width)
        self.modulator_ = _Modulator(len(self.references_), 2 * self.width)
        self.rates_ = {
            name: torch.full_like(parameter, _FIRST_RATE).requires_grad_()
            for name, parameter in self.network_.named_parameters()
        }
        return rng

    def _meta_learn(
        self,
        devices: Sequence[tuple[Tensor, Tensor]],
        embeddings: Tensor,
        rng: np.random.Generator,
    ) -> None:
        learned = [
            *self.network_.parameters(),
            *self.modulator_.parameters(),
            *self.rates_.values(),
        ]
        optimizer = torch.optim.Adam(learned, lr=self.learning_rate, fused=True)
        for _ in range(self.episodes):
            chosen = rng.permutation(len(devices))[: self.tasks]
            rows = [self._rows(len(devices[number][1]), rng) for number in chosen]
            x, y = (
                torch.stack([devices[n][part][r] for n, r in zip(chosen, rows, strict=True)])
                for part in (0, 1)
            )
            embedding = embeddings[chosen]
            parameters, divergence = self._start(embedding)
            few = slice(self.support)
            parameters = self._descend(parameters, x[:, few], y[:, few], embedding, True)
            rest = slice(self.support, None)
            error = functional_call(self.network_, dict(parameters), (x[:, rest], embedding))
            loss = ((error - y[:, rest]) ** 2).mean() + self.divergence * divergence.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _rows(self, count: int, rng: np.random.Generator) -> Tensor:
        """Of one device, for support and query: some more than once where there are too few."""
        wanted = self.support + self.query
        repeats = -(-wanted // count)
        rows = np.concatenate([rng.permutation(count) for _ in range(repeats)])[:wanted]
        return torch.from_numpy(rows)

    # One device, or several at a time

    def _start(self, embedding: Tensor) -> tuple[Parameters, Tensor]:
        """Parameters before the inner steps, and the divergence of the modulation, ``(tasks,)``."""
        tasks = len(embedding)
        parameters = {
            name: parameter.expand(tasks, *parameter.shape[1:])
            for name, parameter in self.network_.named_parameters()
        }
        factors, shifts, divergence = self.modulator_(embedding)
        for number in range(_JOINT_LAYERS):
            weight, bias = f"joint.{number}.weight", f"joint.{number}.bias"
            factor = 1 + _NOISE * factors[:, number]
            parameters[weight] = parameters[weight] * factor[..., None]
            parameters[bias] = parameters[bias] + _NOISE * shifts[:, number, None, None]
        return parameters, divergence

    def _descend(
        self, parameters: Parameters, x: Tensor, y: Tensor, embedding: Tensor, traced: bool
    ) -> Parameters:
        """After the inner steps; ``traced`` where these are to be differentiated."""
        for _ in range(self.inner_steps):
            predicted = functional_call(self.network_, dict(parameters), (x, embedding))
            # The sum over tasks: each one's gradient is that of its own mean.
            loss = ((predicted - y) ** 2).mean(dim=1).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=traced)
            parameters = {
                name: value - self.rates_[name] * gradient
                for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
            }
        return parameters

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        self.scale_ = Scale.of(latency_ms)
        embedding = _embedding(self._at_references(codes, latency_ms))
        self.embedding_ = embedding.expand(self.draws, -1)
        x = self.input_(codes).expand(self.draws, -1, -1)
        y = self.scale_.into(latency_ms).expand(self.draws, -1)
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            parameters, _ = self._start(self.embedding_)
            adapted = self._descend(parameters, x, y, self.embedding_, False)
        self.adapted_parameters_ = {name: value.detach() for name, value in adapted.items()}

    def _at_references(self, codes: Codes, latency_ms: Floats) -> Floats:
        """The new device's latencies for the references, ms: measured, or else estimated."""
        measured = dict(zip(keys(codes), latency_ms.tolist(), strict=True))
        found = np.array([measured.get(key, np.nan) for key in keys(self.references_)])
        missing = np.isnan(found)
        if missing.any():
            ridge = RidgePredictor().fit(self.known_.at(codes), latency_ms)
            found[missing] = ridge.predict(self.known_.at(self.references_[missing]))
        return found

    def _predict(self, codes: Codes) -> Floats:
        parts = []
        with one_thread(), torch.inference_mode():
            for x in self.input_(codes).split(ROWS // self.draws + 1):
                given = (x.expand(self.draws, -1, -1), self.embedding_)
                drawn = functional_call(self.network_, dict(self.adapted_parameters_), given)
                parts.append(drawn.mean(dim=0))
        return self.scale_.back(torch.cat(parts))


_JOINT_LAYERS = 3


class _Joined(nn.Module):
    def __init__(self, body: nn.Module, references: int, width: int) -> None:
        super().__init__()
        self.body = body
        self.device = nn.Sequential(
            Linears(references, width), nn.ReLU(), Linears(width, width), nn.ReLU()
        )
        self.joint = nn.ModuleList(
            Linears(2 * width, outputs) for outputs in (2 * width, 2 * width, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``(tasks, n, d)`` and ``(tasks, references)`` -> ``(tasks, n)``."""
        device = self.device(embedding[:, None])
        state = torch.cat([self.body(x), device.expand(-1, x.shape[1], -1)], dim=-1)
        *hidden, last = self.joint
        for layer in hidden:
            state = torch.relu(layer(state))
        output: Tensor = last(state)
        return output[..., 0]


class _Modulator(nn.Module):
    def __init__(self, references: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(references, 10), nn.ReLU(), nn.Linear(10, 2 * _JOINT_LAYERS * (width + 1))
        )

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors, ``(tasks, layers, width)``, shifts, ``(tasks, layers)``, and the divergence of
        what they are drawn from to the standard normal, ``(tasks,)``."""
        mean, spread = self.layers(embedding).chunk(2, dim=-1)
        sd = nn.functional.softplus(spread)
        divergence = 0.5 * (mean**2 + sd**2 - 1 - 2 * sd.log()).sum(dim=-1)
        drawn = (mean + sd * torch.randn_like(sd)).unflatten(-1, (_JOINT_LAYERS, -1))
        return drawn[..., :-1], drawn[..., -1], divergence


def _embedding(latency_ms: Floats) -> Tensor:
    """``(references,)``, from 0 for the least to 1 for the greatest; zeros where all are equal."""
    spread = float(np.ptp(latency_ms)) or 1.0
    return torch.from_numpy((latency_ms - latency_ms.min()) / spread).float()
