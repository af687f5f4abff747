"""MultiPredict: one network for all devices, which knows each by an embedding of its own."""

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
    """A network trained on all sources, then a little further on a new device (Akhauri 2023).

    Akhauri and Abdelfattah, "Multi-Predict: Few Shot Predictors For Efficient Neural Architecture
    Search". An architecture is read one-hot (by graph convolutions in spaces that have a wiring)
    into a short vector; that, its zero-cost proxies and the embedding of the device, which is
    learned, go through one wide hidden layer and a sigmoid. All sources' samples are learned
    together, by the absolute error. A new device begins with the embedding of the source that
    ranks its samples most alike; then the embedding and the layers after it are trained on them,
    while what reads architectures stays. Sizes, rates and epochs are those of the authors' code.

    Where this differs: Of the 13 zero-cost proxies it has those that need no network to be run,
    FLOPs and parameters, as logarithms, standardised. What sources take for samples of the new
    device is predicted where they did not measure it
    (:class:`esm_host.transfer.known.KnownLatencies`). Latencies are scaled by
    :class:`esm_host.research.transfer.bodies.Scale`.

    Args:
        encoding: of architectures; by default as
            :class:`esm_host.research.transfer.bodies.ArchitectureInput` says.
        width: of the layers that read architectures.
        architecture: length of an architecture's vector.
        device: length of a device's embedding.
        joint: width of the hidden layer after both.
        epochs: passes over the samples of all sources.
        batch_size: samples per step.
        learning_rate: of AdamW on the sources, falling to zero along a cosine.
        steps: on the samples of a new device, all of them in each.
        tuning_rate: of AdamW there, falling likewise.
        weight_decay: of both.
        seed: of the initial weights and the batches.
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
        """Draw the networks; return what they read of all sources' architectures."""
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
        nearest = _most_alike(self.known_.at(codes), latency_ms)
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
        """What does not change with the device, ``(n, architecture + counts)``."""
        read = torch.cat([self.reader_(x) for x in self.input_(codes).split(ROWS)])
        return torch.cat([read, self.counts_(codes)], dim=1)


class _Reader(nn.Module):
    """Of an architecture, ``(n, d)`` -> ``(n, outputs)``."""

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body = body
        self.output = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.output(self.body(x[None])[0]))


class _Joint(nn.Module):
    """Of what was read and a device, ``(n, inputs)`` and ``(n, device)``, a scaled latency."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, read: Tensor, device: Tensor) -> Tensor:
        output: Tensor = self.layers(torch.cat([read, device], dim=1))
        return output[:, 0].sigmoid()


class _Counts:
    """Logarithms of FLOPs and parameters, standardised by those that were seen."""

    def __init__(self, space: SearchSpace, codes: Codes) -> None:
        self._encoder = CostEncoder(space)
        written = "written." * space.prunes
        names = [f"{written}all.{measure}" for measure in ("mflops", "mparameters")]
        self._places = [self._encoder.columns.index(name) for name in names]
        seen = self._logarithms(codes)
        self._mean, self._sd = seen.mean(dim=0), seen.std(dim=0, correction=0).clamp(min=1e-6)

    def __call__(self, codes: Codes) -> Tensor:
        """``(n, 2)``."""
        return (self._logarithms(codes) - self._mean) / self._sd

    def _logarithms(self, codes: Codes) -> Tensor:
        return torch.from_numpy(np.log1p(self._encoder.encode_codes(codes)[:, self._places]))


def _most_alike(known_ms: Floats, latency_ms: Floats) -> int:
    """The source, of ``(n, sources)``, whose ranks are most like those of ``(n,)``."""
    ranks, own = rankdata(known_ms, axis=0), rankdata(latency_ms)
    ranks, own = ranks - ranks.mean(axis=0), own - own.mean()
    spread = np.sqrt((ranks**2).sum(axis=0))
    return int(np.argmax(own @ ranks / np.where(spread > 0, spread, np.inf)))
