"""Simulated devices: latencies of ResNet subnets from a few machine constants.

For development and tests. No quoted figure comes from here but numbers of campaigns that declare
their target, and rightly; they say that their devices are simulated.

A layer takes the longer of computing and moving its data (the roofline: Williams et al. 2009), plus
a launch; weights beyond the cache are fetched from memory, which no sum over layers can express;
and a block costs more or less after this or that block, which no count of blocks can express.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_models.space import Codes
from esm_models.spaces.resnet import ResNetSpace


@dataclass(frozen=True)
class Machine:
    """Constants of a device.

    Attributes:
        flops, bandwidth, memory: operations, and bytes from the cache and from memory, per second.
        cache: bytes of weights that it keeps.
        launch, start: seconds per operator and per inference.
        efficiency: share of ``flops`` that a kernel size reaches.
        half_channels: output channels at which a layer reaches half of that.
        order: SD of the effect that the block before has on a block, as a share.
        noise: SD of the logarithm of what is measured.
        memory_noise: SD of the logarithm of the time for weights from memory.
    """

    flops: float
    bandwidth: float
    memory: float
    cache: float
    launch: float
    start: float
    efficiency: Mapping[int, float]
    half_channels: int
    order: float
    noise: float
    memory_noise: float = 0.0


MACHINES = {
    "desktop": Machine(
        60e9, 25e9, 5e9, 5e6, 4e-6, 60e-6, {1: 0.7, 3: 1, 5: 0.85, 7: 0.9}, 16, 0.10, 0.018
    ),
    "edge": Machine(
        8e9, 4e9, 1e9, 2e6, 12e-6, 300e-6, {1: 0.6, 3: 1, 5: 0.6, 7: 0.7}, 24, 0.08, 0.016
    ),
    "gpu": Machine(
        3e12, 3e11, 1.5e11, 12e6, 8e-6, 50e-6, {1: 0.5, 3: 1, 5: 0.4, 7: 0.4}, 64, 0.10, 0.020
    ),
}


def random_machine(seed: int) -> Machine:
    """Return a device with constants between those of the machines above."""
    rng = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    return Machine(
        flops=between(8e9, 3e12),
        bandwidth=between(4e9, 3e11),
        memory=between(1e9, 1.5e11),
        cache=between(2e6, 12e6),
        launch=between(4e-6, 12e-6),
        start=between(50e-6, 300e-6),
        efficiency={kernel: float(rng.uniform(0.4, 1)) for kernel in (1, 3, 5, 7)},
        half_channels=int(between(16, 64)),
        order=float(rng.uniform(0, 0.1)),
        noise=between(0.008, 0.02),
        memory_noise=float(rng.uniform(0, 0.15)),
    )


def latencies(
    space: ResNetSpace, codes: Codes, machine: Machine, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return simulated measurements, ms, shape ``(n,)``."""
    seconds, weights = _blocks(space, machine)
    order = np.random.default_rng(0).normal(1, machine.order, (codes.shape[1], *2 * (10,)))
    total = np.full(len(codes), machine.start)
    held = np.zeros(len(codes))
    for unit in range(codes.shape[1]):
        for place in range(codes.shape[2]):
            code = codes[:, unit, place]
            before = codes[:, unit, place - 1] if place else np.full_like(code, -1)
            here = code >= 0
            taken = seconds[unit, code, int(place > 0)] * order[unit, before, code]
            total += np.where(here, taken, 0)
            held += np.where(here, weights[unit, code, int(place > 0)], 0)
    soft = 0.15 * machine.cache  # no cache fills up at one point
    beyond = soft * np.logaddexp(0, (held - machine.cache) / soft)
    unsteady = np.exp(rng.normal(0, machine.memory_noise, len(codes)))
    exact: NDArray[np.float64] = 1e3 * (total + unsteady * beyond / machine.memory)
    return exact * np.exp(rng.normal(0, machine.noise, len(codes)))


def _blocks(
    space: ResNetSpace, machine: Machine
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return seconds and weight bytes of every block, ``(units, options, first or later)``."""
    seconds = np.zeros((len(space.widths), len(space.options), 2))
    weights = np.zeros_like(seconds)
    side, channels = -(-space.resolution // 4), space.channels(64)
    for unit, (width, stride) in enumerate(zip(space.widths, space.strides, strict=True)):
        out, small = space.channels(width), -(-side // stride)
        for index, option in enumerate(space.options):
            middle = space.channels(width / 4 * float(option["expansion"]))
            kernel = int(option["kernel"])
            for later, (wide, start) in enumerate(((channels, side), (out, small))):
                layers = [
                    (start, start, wide, middle, 1),
                    (start, small, middle, middle, kernel),
                    (small, small, middle, out, 1),
                ]
                if not later:
                    layers.append((start, small, wide, out, 1))
                costs = [_conv(machine, *layer) for layer in layers]
                added = machine.launch + 12 * out * small**2 / machine.bandwidth
                seconds[unit, index, later] = added + sum(cost[0] for cost in costs)
                weights[unit, index, later] = sum(cost[1] for cost in costs)
        side, channels = small, out
    return seconds, weights


def _conv(
    machine: Machine, side: int, out_side: int, channels: int, out: int, kernel: int
) -> tuple[float, float]:
    """Return seconds and weight bytes of a convolution."""
    weights = 4 * kernel**2 * channels * out
    moved = weights + 4 * (channels * side**2 + out * out_side**2)
    reached = machine.flops * machine.efficiency[kernel] * out / (out + machine.half_channels)
    computing = 2 * kernel**2 * channels * out * out_side**2 / reached
    return machine.launch + max(computing, moved / machine.bandwidth), weights
