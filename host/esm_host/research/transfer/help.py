"""HELP: meta-learned predictor with a device embedding of ten reference latencies."""

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
"""Initial learning rate of the inner steps; it is then learned per parameter."""
_NOISE = 0.01
"""Scale of the modulation's effect on parameters."""

Parameters = Mapping[str, Tensor]
"""Parameters of a network, with tasks as their first axis."""


class HELPPredictor(FewShotPredictor):
    """Meta-learning over devices (Lee et al. 2021).

    "HELP: Hardware-adaptive Efficient Latency Prediction for NAS via Meta-Learning". The embedding
    of a device is its latencies for ten reference architectures, scaled from 0 to 1. The network
    reads the architecture (one-hot, or by graph convolutions in spaces with a wiring) and that
    embedding, and joins both.

    A task is a device. From ``support`` of its latencies, ``inner_steps`` steps of gradient descent
    lead to the network that predicts others (``query``). Three parts are trained for these
    predictions: the initial parameters, a learning rate for each of them (Meta-SGD), and a small
    network. From the embedding it draws factors for the inputs and a shift for the outputs of the
    last three layers. It has a Kullback-Leibler penalty to the standard normal. A new device's
    prediction is the mean over ``draws`` of these. Sizes, rates and steps are those of the authors'
    code.

    Differences: The references are random architectures among those that most sources measured;
    :attr:`references_` has them after learning. The published method measures them on the new
    device; to do so, include them in the samples. The latency of others is estimated by a ridge
    regression of the new device's latencies on those of the sources. Latencies are scaled by
    :class:`esm_host.research.transfer.bodies.Scale`. All of a source's samples are used (there,
    without a tenth of the slowest and of the fastest). The best episode is not selected, as that
    needs further devices.

    Args:
        encoding: Encoding of architectures; None for the default of
            :class:`esm_host.research.transfer.bodies.ArchitectureInput`.
        references: Number of reference architectures.
        width: Width of the layers that read architecture and embedding; those after them have twice
            that.
        episodes: Number of steps of meta-learning.
        tasks: Devices per episode; all if there are fewer.
        support: Samples per device for the inner steps.
        query: Further samples per device for the loss.
        inner_steps: Steps of gradient descent, in learning and in adapting.
        learning_rate: Learning rate of Adam over episodes.
        divergence: Weight of the Kullback-Leibler penalty.
        draws: Number of draws of the modulation in a prediction.
        seed: Random seed of references, initial weights, episodes and draws.
    """

    absolute = True
    rates_: dict[str, Tensor]
    least_sources = 2  # meta-learning needs several tasks

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
        """Draw references and networks, and return the generator for the episodes."""
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
        """Return rows of a device for support and query, repeated if there are too few."""
        wanted = self.support + self.query
        repeats = -(-wanted // count)
        rows = np.concatenate([rng.permutation(count) for _ in range(repeats)])[:wanted]
        return torch.from_numpy(rows)

    # One device, or several at a time

    def _start(self, embedding: Tensor) -> tuple[Parameters, Tensor]:
        """Return parameters before the inner steps, and the divergence, ``(tasks,)``."""
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
        """Return parameters after the inner steps; ``traced`` keeps the graph for gradients."""
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
        """Return the new device's latencies for the references, ms: measured, or estimated."""
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
        """Return predictions ``(tasks, n)``.

        Args:
            x: Encodings, ``(tasks, n, d)``.
            embedding: Device embeddings, ``(tasks, references)``.
        """
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
        """Return the modulation and its divergence to the standard normal.

        Returns:
            Factors, ``(tasks, layers, width)``; shifts, ``(tasks, layers)``; divergence,
            ``(tasks,)``.
        """
        mean, spread = self.layers(embedding).chunk(2, dim=-1)
        sd = nn.functional.softplus(spread)
        divergence = 0.5 * (mean**2 + sd**2 - 1 - 2 * sd.log()).sum(dim=-1)
        drawn = (mean + sd * torch.randn_like(sd)).unflatten(-1, (_JOINT_LAYERS, -1))
        return drawn[..., :-1], drawn[..., -1], divergence


def _embedding(latency_ms: Floats) -> Tensor:
    """Return latencies scaled from 0 to 1, ``(references,)``; zeros if all are equal."""
    spread = float(np.ptp(latency_ms)) or 1.0
    return torch.from_numpy((latency_ms - latency_ms.min()) / spread).float()
