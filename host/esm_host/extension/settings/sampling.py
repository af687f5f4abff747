"""Settings of sampling: the choice of architectures and the end of the campaign."""

from __future__ import annotations

from dataclasses import dataclass

from esm_host.arguments import argument, either, flag
from esm_host.errors import UsageError, check_range
from esm_host.extension.settings.seed import SeedSettings
from esm_host.sampling import sampler_class
from esm_host.sampling.bins import BINS, DepthBins
from esm_host.transfer import LEAST_SAMPLES, sampler_and_encoding
from esm_models.space import SearchSpace
from esm_protos.nearest import unknown
from esm_protos.plugins import absolute

LEAST_INITIAL = 10
"""Smallest number of architectures in the first round of a campaign."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(SeedSettings):
    """Settings of sampling, of its extension and of its end.

    Attributes:
        initial: Architectures measured before the first training (N_I). 0 for the default of the
            sampler: 20 if it chooses its samples, otherwise the paper's 300.
        step: Architectures added by each extension (N_step). 0 for the default of the sampler: 20
            if it chooses its samples, otherwise the paper's 100.
        bins: Number of equally spaced depth bins (N_bins). None makes 5, or fewer if the space
            has fewer depths.
        target_accuracy_percent: Target accuracy (Acc_TH).
        judge: ``"bins"`` if every bin must reach the target, ``"overall"`` for the overall
            accuracy.
        max_models: Largest number of architectures to learn from; the campaign then ends without
            convergence.
        sampling: Name in :data:`esm_host.sampling.SAMPLERS`, or path/to/file.py:Class.
        weight_below: Share of a step for bins below the target (W_B of Algorithm 1).
        weight_above: Share of a step for bins above the target (W_A of Algorithm 1).
        extension: ``"balanced"`` (Algorithm 1), or ``"cost-aware"``: bins by their shortfall,
            models by the predictor's uncertainty per second of device time.
        confidence_percent: Confidence of the lower bound of a bin's accuracy, which must reach the
            target if the sampler chooses its samples.
        verify: Number of random architectures, spread over the bins, that check the predictor
            once it has reached its target or used its budget, and are not trained on. A target
            that is no longer reached with them is pursued further. 0 for no check.
        budget_s: Device time after which the campaign ends, s, its check included; None for no
            limit. A target accuracy of 100 uses all of it.
        held_out: Number of random first architectures of a warm start that form the held-out set.
        sampler: Sampler of the other first architectures of a warm start: a name in
            :data:`esm_host.transfer.SAMPLERS`, with its encoding if it needs one
            (``"cosine:zcp"``). Empty for the sampler of the method.

    Raises:
        UsageError: a value is out of range.
    """

    initial: int = 0
    step: int = 0
    bins: int | None = None
    target_accuracy_percent: float = 95.0
    judge: str = "bins"
    max_models: int = 4000
    sampling: str = "informative"
    weight_below: float = 0.8
    weight_above: float = 0.2
    extension: str = "balanced"
    confidence_percent: float = 90.0
    verify: int = 20
    budget_s: float | None = None
    held_out: int = 0
    sampler: str = ""

    def __post_init__(self) -> None:
        SeedSettings.__post_init__(self)
        object.__setattr__(self, "sampling", absolute(self.sampling))
        for name, chosen, drawn in (("initial", 20, 300), ("step", 20, 100)):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, chosen if self.chooses else drawn)
        check_range("initial", self.initial, LEAST_INITIAL, 10**9)
        check_range("step", self.step, 1, 10**9)
        check_range("target_accuracy_percent", self.target_accuracy_percent, 0, 100)
        check_range("confidence_percent", self.confidence_percent, 50, 99.9)
        check_range("verify", self.verify, 0, 10**6)
        if self.budget_s is not None:
            check_range("budget_s", self.budget_s, 1, 10**9)
        check_range("weight_below", self.weight_below, 0, 10**6)
        check_range("weight_above", self.weight_above, 0, 10**6)
        if self.bins is not None:
            check_range("bins", self.bins, 1, 1000)
        if self.max_models < self.initial:
            raise UsageError(
                f"{argument('max_models')} {self.max_models} is less than {argument('initial')} "
                f"{self.initial}"
            )
        if not self.weight_below:
            raise UsageError(
                f"{argument('weight_below')} 0 never extends a bin below the target: give more"
            )
        if self.judge not in (known := ("bins", "overall")):
            raise UsageError(unknown("judge", self.judge, known))
        self._check_extension()
        self._check_first()

    def _check_extension(self) -> None:
        if self.extension not in (known := ("balanced", "cost-aware")):
            raise UsageError(unknown("extension", self.extension, known))
        if self.extension == "cost-aware" and self.chooses:
            raise UsageError(
                f"{argument('extension')} cost-aware chooses among random samples: choose "
                f"{argument('sampling')} balanced"
            )
        if self.extension == "cost-aware" and not self.by_bin:
            raise UsageError(
                f"{argument('extension')} cost-aware extends bins: choose {argument('sampling')} "
                "balanced"
            )
        most = self.bins or BINS
        if not self.by_bin and self.judge == "bins" and most > self.initial:
            raise UsageError(
                f"{argument('bins')} {most} exceeds {argument('initial')} {self.initial}"
            )

    def _check_first(self) -> None:
        if self.held_out and not 4 <= self.held_out <= self.initial - LEAST_SAMPLES:
            raise UsageError(
                f"{self.held_out} of {self.initial} held out: hold out 4 or more, and leave "
                f"{LEAST_SAMPLES} or more"
            )
        if self.sampler:
            sampler_and_encoding(self.sampler)

    @property
    def chooses(self) -> bool:
        """Whether the most informative of the sampler's draws are measured."""
        return sampler_class(self.sampling).chooses

    @property
    def by_bin(self) -> bool:
        """Whether the sampler can draw from one depth bin."""
        return sampler_class(self.sampling).by_bin

    @property
    def named_budget(self) -> str:
        """The budget with its marked name, for messages."""
        return either(f"budget_s {self.budget_s:g}", f"{flag('budget_s')} {self.budget_s:g}s")

    def depth_bins(self, space: SearchSpace) -> DepthBins:
        """Return the depth bins of a space.

        Raises:
            UsageError: the space has fewer depths than bins.
        """
        if self.bins is None:
            return DepthBins.by_default(space.min_depth, space.max_depth)
        return DepthBins(space.min_depth, space.max_depth, self.bins)
