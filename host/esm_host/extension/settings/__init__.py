"""Settings of a campaign (ESM, II-B), in four parts.

:class:`SpaceSettings` define the search space, :class:`SamplingSettings` the choice of
architectures, :class:`MeasuringSettings` the measurement and :class:`TrainingSettings` the
predictor. :class:`Settings` combine all four and are stored with the campaign. Code takes only
the part that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypedDict

from esm_host.arguments import argument
from esm_host.dataset.campaign_metric import ENERGY, LATENCY
from esm_host.dataset.settings import LONG_VISITS, MeasuringSettings
from esm_host.errors import DatasetError, UsageError
from esm_host.extension.presets import preset
from esm_host.extension.settings.sampling import LEAST_INITIAL, SamplingSettings
from esm_host.extension.settings.space import SpaceSettings
from esm_host.extension.settings.training import TrainingSettings
from esm_host.transfer import LEAST_SAMPLES, method_of
from esm_protos.messages import MeasureSpec

__all__ = [
    "LEAST_INITIAL",
    "LONG_VISITS",
    "Changes",
    "MeasuringSettings",
    "SamplingSettings",
    "Settings",
    "SpaceSettings",
    "TrainingSettings",
]


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings, SamplingSettings, SpaceSettings, MeasuringSettings):
    """Settings of one campaign, all four parts.

    Attributes:
        preset: Name in :data:`esm_host.extension.presets.PRESETS` whose values were the starting
            point. It has no effect by itself.

    Raises:
        UsageError: a value is out of range.
    """

    preset: str = ""

    def __post_init__(self) -> None:
        for part in (SpaceSettings, SamplingSettings, TrainingSettings, MeasuringSettings):
            part.__post_init__(self)
        if not self.warm_start and (self.sampler or self.held_out):
            name = "sampler" if self.sampler else "held_out"
            raise UsageError(
                f"{argument(name)} belongs to a transfer: give {argument('warm_start')} as well"
            )
        if self.warm_start and self.lead != LATENCY:
            self._check_lead()

    def _check_lead(self) -> None:
        """Check that sources, which are latencies, can help to learn the leading metric."""
        if self.lead != ENERGY:
            raise UsageError(
                f"{argument('metric')} {self.metric}: latencies of other devices tell nothing of "
                f"{self.lead.title}: name latency or energy first"
            )
        if self.adapts:
            raise UsageError(
                f"{argument('method')} {self.method} predicts latencies only: omit it, or name "
                f"latency first in {argument('metric')}"
            )

    @classmethod
    def of_preset(cls, name: str, device: str, **changes: Any) -> Self:
        """Return the settings of a published system for a device.

        Args:
            name: Name of the preset.
            device: Name of the device.
            **changes: Settings that replace those of the preset.

        Raises:
            UsageError: the preset does not exist, or a value is out of range.
        """
        found = preset(name)
        spec = changes.pop("spec", None) or MeasureSpec(**found.spec)
        return cls(device, **{**found.settings, **changes}, preset=name, spec=spec)

    @classmethod
    def for_transfer(
        cls,
        device: str,
        samples: int = 20,
        held_out: int = 10,
        sources: Sequence[str] = (),
        **changes: Any,
    ) -> Self:
        """Return the settings of a campaign that learns a device from few samples and sources.

        Args:
            device: Name of the device.
            samples: Number of models to learn from, chosen by ``sampler``.
            held_out: Number of random models in the held-out set: 4 or more, or 0.
            sources: Names of the sources; empty for all sources of the space.
            **changes: Further settings, such as ``method`` and ``sampler``.

        Raises:
            UsageError: a value is out of range.
        """
        if 0 < held_out < 4:
            raise UsageError(f"{argument('held_out')} {held_out}: give 4 or more, or 0")
        measured = samples + held_out
        if samples < LEAST_SAMPLES or measured < LEAST_INITIAL:
            raise UsageError(
                f"{argument('samples')} {samples} and {argument('held_out')} {held_out}: give "
                f"{LEAST_SAMPLES} samples or more, and {LEAST_INITIAL} or more together"
            )
        if sources and not all(name.strip(" ,") for name in sources):
            raise UsageError(
                f"{argument('source')} has an empty name: omit it to learn from all sources"
            )
        given = {
            "initial": measured,
            "max_models": measured,
            "judge": "overall",
            "sampling": "random",
            "warm_start": ",".join(sources) if sources else "all",
            "held_out": held_out,
            "verify": 0,  # the held-out set is its check
            "block_size": min(20, -(-measured // 3)),  # at least three blocks to compare
        }
        return cls(device, **{**given, **changes})

    @property
    def has_target(self) -> bool:
        """Whether the campaign has a target accuracy.

        A transfer ends after its samples, and a budget without a target is used up.
        """
        if self.budget_s is not None and self.target_accuracy_percent == 100:
            return False
        return not self.warm_start or self.initial < self.max_models

    @property
    def target_percent(self) -> float | None:
        """Target accuracy; None for a campaign without one."""
        return self.target_accuracy_percent if self.has_target else None

    @property
    def first_sampler(self) -> str:
        """Sampler of the first architectures of a warm start."""
        return self.sampler or method_of(self.method).sampler

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Inverse of :meth:`to_json`.

        Raises:
            DatasetError: written by a program with other settings.
        """
        try:
            spec = MeasureSpec.from_json(data["spec"])
            # Campaigns that say nothing are from before there was a choice.
            return cls(**{"predictor": "mlp", "verify": 0, **data, "spec": spec})
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"the stored settings are unreadable ({error}): use the esm-profiler that wrote it"
            ) from error


class Changes(TypedDict, total=False):
    """Settings that a resumed campaign may change; None keeps a value."""

    device: str | None
    target_accuracy_percent: float | None
    max_models: int | None
    verify: int | None
    budget_s: float | None
    train_on: str | None
    weights: str | None
    predictor: str | None
    encoding: str | None
    group_tolerance_percent: float | None
    raw: bool | None
