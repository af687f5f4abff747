"""Which architectures are measured first, and how more are drawn."""

from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.base import Sampler
from esm_host.sampling.random import RandomSampler

SAMPLERS: dict[str, type[Sampler]] = {"balanced": BalancedSampler, "random": RandomSampler}

__all__ = ["SAMPLERS", "BalancedSampler", "RandomSampler", "Sampler"]
