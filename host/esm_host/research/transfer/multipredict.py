"""MultiPredict: one network for all devices, with a learned embedding of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from esm_host.encoding.cost import CostEncoder
from esm_host.predictors.networks import ROWS, batches, one_thread
from esm_host.research.transfer.bodies import ArchitectureInput, Scale, check_encoding
from esm_host.research.transfer.weights import load_weights, weights
from esm_host.transfer.base import FewShotPredictor, Floats
from esm_host.transfer.known import KnownLatencies
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace


class MultiPredictPredictor(FewShotPredictor):
    """Network trained on all sources, then fine-tuned on a new device (Akhauri 2023).

    Akhauri and Abdelfattah, "Multi-Predict: Few Shot Predictors For Efficient Neural Architecture
    Search". An architecture is read one-hot (by graph convolutions in spaces with a wiring) into a
    short vector. That, its zero-cost proxies and the learned embedding of the device pass through
    one wide hidden layer and a sigmoid. All sources are learned together, by the absolute error. A
    new device begins with the embedding of the source whose ranking of the samples is most similar.
    The embedding and the layers after it are then trained on the samples. The part that reads
    architectures is fixed. Sizes, rates and epochs are those of the authors' code.

    Differences: Of the 13 zero-cost proxies it has those that need no inference, FLOPs and
    parameters, as standardised logarithms. A source's missing latencies for the samples are
    predicted (:class:`esm_host.transfer.known.KnownLatencies`). Latencies are scaled by
    :class:`esm_host.research.transfer.bodies.Scale`.

    Args:
        encoding: Encoding of architectures; None for the default of
            :class:`esm_host.research.transfer.bodies.ArchitectureInput`.
        width: Width of the layers that read architectures.
        architecture: Length of an architecture's vector.
        device: Length of a device's embedding.
        joint: Width of the hidden layer after both.
        epochs: Number of epochs over the samples of all sources.
        batch_size: Samples per step.
        learning_rate: Initial learning rate of AdamW on the sources, with a cosine schedule.
        steps: Steps on the samples of a new device, all of them in each.
        tuning_rate: Initial learning rate of AdamW there, with a cosine schedule.
        weight_decay: Weight decay of both.
        seed: Random seed of the initial weights and the batches.
    """

    absolute = True

    def __init__(
        self,
        encoding: str | None = None,
        width: int = 100,
        architecture: int = 30,
        device: int = 8,
        joint: int = 1000,
        epochs: int = 250,
        batch_size: int = 128,
        learning_rate: float = 4e-4,
        steps: int = 50,
        tuning_rate: float = 1e-3,
        weight_decay: float = 5e-4,
        seed: int = 0,
    ) -> None:
        self.encoding = encoding
        self.width = width
        self.architecture = architecture
        self.device = device
        self.joint = joint
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.steps = steps
        self.tuning_rate = tuning_rate
        self.weight_decay = weight_decay
        self.seed = seed

    def _learn(self, sources: Sequence[Source]) -> None:
        with one_thread(), torch.random.fork_rng(devices=[]):
            x, counts = self._prepare(sources)
            y = torch.cat([Scale.of(s.latency_ms).into(s.latency_ms) for s in sources])
            of = torch.from_numpy(np.repeat(np.arange(len(sources)), [len(s) for s in sources]))
            learned = [*self.reader_.parameters(), *self.joint_.parameters(), self.devices_]
            steps = self.epochs * -(-len(y) // self.batch_size)
            optimizer, schedule = self._optimizer(learned, self.learning_rate, steps)
            for (rows,) in batches([len(y)], [self.seed], self.batch_size, self.epochs):
                read = torch.cat([self.reader_(x[rows]), counts[rows]], dim=1)
                predicted = self.joint_(read, self.devices_[of[rows]])
                optimizer.zero_grad()
                (predicted - y[rows]).abs().mean().backward()
                optimizer.step()
                schedule.step()

    def _restore(
        self, sources: Sequence[Source], trained: Mapping[str, NDArray[np.generic]]
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            self._prepare(sources)
        load_weights(self.reader_, trained, "reader")
        load_weights(self.joint_, trained, "joint")
        self.devices_ = nn.Parameter(torch.from_numpy(trained["devices"]))

    def trained(self) -> Mapping[str, NDArray[np.generic]]:
        return {
            **weights(self.reader_, "reader"),
            **weights(self.joint_, "joint"),
            "devices": self.devices_.detach().numpy(),
        }

    def check(self, space: SearchSpace, sources: Sequence[str]) -> None:
        super().check(space, sources)
        check_encoding(space, self.encoding)

    def _prepare(self, sources: Sequence[Source]) -> tuple[Tensor, Tensor]:
        """Draw the networks and return their inputs for all sources' architectures."""
        self.known_ = KnownLatencies(sources)
        codes = np.concatenate([source.codes for source in sources])
        self.input_ = ArchitectureInput(self.space, self.encoding, codes)
        self.counts_ = _Counts(self.space, codes)
        x, counts = self.input_(codes), self.counts_(codes)
        torch.manual_seed(self.seed)
        self.reader_ = _Reader(self.input_.body(self.width), self.width, self.architecture)
        self.joint_ = _Joint(self.architecture + counts.shape[1] + self.device, self.joint)
        self.devices_ = nn.Parameter(torch.randn(len(sources), self.device))
        return x, counts

    def _optimizer(
        self, parameters: Sequence[nn.Parameter], rate: float, steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.AdamW(
            parameters, lr=rate, weight_decay=self.weight_decay, fused=True
        )
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        self.scale_ = Scale.of(latency_ms)
        y = self.scale_.into(latency_ms)
        nearest = _nearest_source(self.known_.at(codes), latency_ms)
        with one_thread():
            with torch.inference_mode():
                read = self._read(codes)
            read = read.clone()  # an ordinary tensor again
            self.own_joint_ = _Joint(read.shape[1] + self.device, self.joint)
            self.own_joint_.load_state_dict(self.joint_.state_dict())
            self.own_device_ = nn.Parameter(self.devices_[nearest].detach().clone())
            learned = [*self.own_joint_.parameters(), self.own_device_]
            optimizer, schedule = self._optimizer(learned, self.tuning_rate, self.steps)
            for _ in range(self.steps):
                predicted = self.own_joint_(read, self.own_device_.expand(len(y), -1))
                optimizer.zero_grad()
                (predicted - y).abs().mean().backward()
                optimizer.step()
                schedule.step()

    def _predict(self, codes: Codes) -> Floats:
        parts = []
        with one_thread(), torch.inference_mode():
            for read in self._read(codes).split(ROWS):
                parts.append(self.own_joint_(read, self.own_device_.expand(len(read), -1)))
        return self.scale_.back(torch.cat(parts))

    def _read(self, codes: Codes) -> Tensor:
        """Return the part of the input without the device, ``(n, architecture + counts)``."""
        read = torch.cat([self.reader_(x) for x in self.input_(codes).split(ROWS)])
        return torch.cat([read, self.counts_(codes)], dim=1)


class _Reader(nn.Module):
    """Vector of an architecture, ``(n, d)`` -> ``(n, outputs)``."""

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body = body
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.output(self.body(x[None])[0]))


class _Joint(nn.Module):
    """Scaled latency from ``(n, inputs)`` of an architecture and ``(n, device)`` of a device."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, read: Tensor, device: Tensor) -> Tensor:
        output: Tensor = self.layers(torch.cat([read, device], dim=1))
        return output[:, 0].sigmoid()


class _Counts:
    """Logarithms of FLOPs and parameters, standardised by the sources' architectures."""

    def __init__(self, space: SearchSpace, codes: Codes) -> None:
        self._encoder = CostEncoder(space)
        written = "written." * space.prunes
        names = [f"{written}all.{measure}" for measure in ("mflops", "mparameters")]
        self._places = [self._encoder.columns.index(name) for name in names]
        seen = self._logarithms(codes)
        self._mean, self._sd = seen.mean(dim=0), seen.std(dim=0, correction=0).clamp(min=1e-6)

    def __call__(self, codes: Codes) -> Tensor:
        """Return ``(n, 2)``."""
        return (self._logarithms(codes) - self._mean) / self._sd

    def _logarithms(self, codes: Codes) -> Tensor:
        return torch.from_numpy(np.log1p(self._encoder.encode_codes(codes)[:, self._places]))


def _nearest_source(known_ms: Floats, latency_ms: Floats) -> int:
    """Return the source, of ``(n, sources)``, whose ranks are nearest to those of ``(n,)``."""
    ranks, own = rankdata(known_ms, axis=0), rankdata(latency_ms)
    ranks, own = ranks - ranks.mean(axis=0), own - own.mean()
    spread = np.sqrt((ranks**2).sum(axis=0))
    return int(np.argmax(own @ ranks / np.where(spread > 0, spread, np.inf)))
