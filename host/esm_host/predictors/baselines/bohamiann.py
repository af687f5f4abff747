"""BOHAMIANN: a Bayesian network, sampled by an adaptive Monte Carlo method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esm_host.predictors.base import Floats, Samples
from esm_host.predictors.networks import (
    Linears,
    Network,
    NetworkPredictor,
    batches,
    one_thread,
    stacked,
)

_NOISE_PRIOR = (math.log(1e-2), 2.0)  # of the log of the noise's variance: mean, sd


class BOHAMIANNPredictor(NetworkPredictor["_Tanh"]):
    """Mean of networks drawn from their posterior (Springenberg et al. 2016).

    "Bayesian Optimization with Robust Bayesian Neural Networks": three layers of 50 tanh and a
    learned noise. The sampler is stochastic-gradient Hamiltonian Monte Carlo. Its steps and
    friction adapt to the second moments of the gradients during burn-in (Section 4). Weights and
    biases have a normal prior of variance 1 over the inputs of their layer. The noise's variance
    has a log-normal prior around a hundredth of the latencies' variance. Inputs and latencies are
    standardised.

    The numbers of steps and the step size are set for speed and not tuned.

    Args:
        hidden: Width of the layers.
        layers: Number of hidden layers.
        step_size: Step size of the dynamics, per sample.
        friction: Share of the momentum lost per step.
        burn_in: Number of steps before the first draw.
        steps: Total number of steps.
        every: Number of steps between draws.
        batch_size: Samples of data per step.
        seed: Random seed of the initial weights, the batches and the noise.
    """

    knows_std = True

    def __init__(
        self,
        hidden: int = 50,
        layers: int = 3,
        step_size: float = 0.02,
        friction: float = 0.05,
        burn_in: int = 700,
        steps: int = 1300,
        every: int = 30,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.layers = layers
        self.step_size = step_size
        self.friction = friction
        self.burn_in = burn_in
        self.steps = steps
        self.every = every
        self.batch_size = batch_size
        self.seed = seed

    def _network(self, encodings: NDArray[np.float32]) -> _Tanh:
        return _Tanh(encodings, self.hidden, self.layers)

    @classmethod
    def _fit_all(cls, predictors: Sequence[Self], samples: Sequence[Samples]) -> None:
        with one_thread():
            _sample(predictors, samples)

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        return self._predict_with_std(encodings)[0]

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        # The drawn networks are the members, with the same input for all.
        with one_thread(), torch.inference_mode():
            x = torch.from_numpy(encodings)
            parts = [
                self.network_(part.expand(len(self.noise_), *part.shape)) for part in x.split(1024)
            ]
        each = torch.cat(parts, dim=1).numpy().astype(np.float64)
        variance = each.var(axis=0) + self.noise_.mean()
        return each.mean(axis=0) * self.sd_ms_ + self.mean_ms_, np.sqrt(variance) * self.sd_ms_


class _Tanh(Network):
    mean: Tensor
    scale: Tensor

    def __init__(self, encodings: NDArray[np.float32], hidden: int, layers: int) -> None:
        super().__init__()
        sd = encodings.std(axis=0)
        self.register_buffer("mean", torch.from_numpy(encodings.mean(axis=0))[None, None])
        self.register_buffer("scale", torch.from_numpy(np.where(sd > 0, sd, 1))[None, None])
        widths = [encodings.shape[1], *[hidden] * layers]
        self.layers = nn.ModuleList(Linears(a, b, gain=1) for a, b in itertools.pairwise(widths))
        self.output = Linears(hidden, 1, gain=1)
        self.log_noise = nn.Parameter(torch.full((1, 1, 1), _NOISE_PRIOR[0]))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.scale
        for layer in self.layers:
            x = torch.tanh(layer(x))
        output: Tensor = self.output(x)
        return output[..., 0]

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the negative log likelihood."""
        log_noise = self.log_noise[..., 0]
        return (super().losses(x, y) * torch.exp(-log_noise) + log_noise) / 2

    def prior(self) -> Tensor:
        """Return the negative log prior of every member, ``(members,)``."""
        mean, sd = _NOISE_PRIOR
        total = ((self.log_noise - mean) / sd).square().flatten(1).sum(dim=1)
        for layer in (*self.layers, self.output):
            inputs = layer.weight.shape[1]
            for values in (layer.weight, layer.bias):
                total = total + inputs * values.square().flatten(1).sum(dim=1)
        return total / 2


def _sample(members: Sequence[BOHAMIANNPredictor], samples: Sequence[Samples]) -> None:
    """Run all members' chains in the same steps and store the drawn networks."""
    first = members[0]
    targets = [member._prepare(*part) for member, part in zip(members, samples, strict=True)]
    network = stacked([member.network_ for member in members])
    x = torch.from_numpy(np.concatenate([part[0] for part in samples]))
    w = torch.from_numpy(np.concatenate([part[2] for part in samples]).astype(np.float32))
    y = torch.cat(targets)
    sizes = [len(target) for target in targets]
    of_batch = torch.tensor(sizes, dtype=torch.float32)
    seeds = [member.seed for member in members]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    epochs = -(-first.steps // -(-max(sizes) // first.batch_size))

    # All parameters of a member are one row, (members, parameters), and so are their gradients.
    position = torch.cat([p.detach().flatten(1) for p in network.parameters()], dim=1)
    gradient = torch.zeros_like(position)
    for parameter, part, slope in zip(
        network.parameters(), _parts(network, position), _parts(network, gradient), strict=True
    ):
        parameter.data, parameter.grad = part, slope
    momentum = torch.zeros_like(position)
    window, smooth, square = (torch.ones_like(position) for _ in range(3))
    drawn = []
    step_size, friction = first.step_size, first.friction
    for step, rows in enumerate(batches(sizes, seeds, first.batch_size, epochs)):
        if step == first.steps:
            break
        gradient.zero_()
        likelihood = of_batch * (w[rows] * network.losses(x[rows], y[rows])).mean(dim=1)
        (likelihood + network.prior()).sum().backward()
        if step < first.burn_in:
            rate = 1 / (window + 1)  # as in the authors' program: with 1 there would be no average
            window += 1 - smooth * smooth / square * window
            smooth += rate * (gradient - smooth)
            square += rate * (gradient * gradient - square)
            inverse = 1 / (square.sqrt() + 1e-8)
            noise_sd = (2 * friction * step_size**2 * inverse - step_size**4).clamp(min=0).sqrt()
        normal = torch.stack([torch.randn(position.shape[1], generator=g) for g in generators])
        momentum += noise_sd * normal - step_size**2 * inverse * gradient - friction * momentum
        position += momentum
        if step >= first.burn_in and (step - first.burn_in) % first.every == 0:
            drawn.append(position.clone())
    for member, draws in zip(members, torch.stack(drawn, dim=1), strict=True):
        for parameter, part in zip(
            member.network_.parameters(), _parts(member.network_, draws), strict=True
        ):
            parameter.data = part
        member.noise_ = torch.exp(member.network_.log_noise.detach()).flatten().numpy()


def _parts(network: Network, flat: Tensor) -> list[Tensor]:
    """Return ``(members, parameters)`` as the network's parameters, in shared memory."""
    shapes = [parameter.shape[1:] for parameter in network.parameters()]
    parts = flat.split([shape.numel() for shape in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
