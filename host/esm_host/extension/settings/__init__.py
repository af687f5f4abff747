"""Settings of a campaign (ESM, II-B), in four parts.

:class:`SpaceSettings` make the search space, :class:`SamplingSettings` choose architectures,
:class:`MeasuringSettings` measure them and :class:`TrainingSettings` learn from them.
:class:`Settings` are all four: the whole that a campaign stores. Code takes the part that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from esm_host.arguments import argument
from esm_host.dataset.settings import LONG_VISITS, MeasuringSettings
from esm_host.errors import DatasetError, UsageError
from esm_host.extension.presets import preset
from esm_host.extension.settings.sampling import LEAST_INITIAL, SamplingSettings
from esm_host.extension.settings.space import SpaceSettings
from esm_host.extension.settings.training import TrainingSettings
from esm_host.transfer import LEAST_SAMPLES, method_of
from esm_protos.messages import MeasureSpec

__all__ = [
    "LONG_VISITS",
    "MeasuringSettings",
    "SamplingSettings",
    "Settings",
    "SpaceSettings",
    "TrainingSettings",
]


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings, SamplingSettings, SpaceSettings, MeasuringSettings):
    """Settings of one campaign: all of its four parts.

    Attributes:
        preset: name in :data:`esm_host.extension.presets.PRESETS`, whose values these settings
            began with; it changes nothing by itself.

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
                f"{argument(name)} is of a transfer: give {argument('warm_start')} as well"
            )

    @classmethod
    def of_preset(cls, name: str, device: str, **changes: Any) -> Self:
        """Return the settings of a published system, on a device.

        Args:
            changes: further settings, in place of the preset's.

        Raises:
            UsageError: there is no such preset, or a value is out of range.
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
        """Return the settings of a campaign that learns a device from a few samples and sources.

        Args:
            samples: models to learn from, chosen by ``sampler``.
            held_out: models drawn at random that tell how good it is: 4 or more, or 0.
            sources: names of them; none takes all that are known of the space.
            changes: further settings, such as ``method`` and ``sampler``.

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
                f"{argument('source')} names nothing: leave it out to learn from all that there are"
            )
        given = {
            "initial": measured,
            "max_models": measured,
            "judge": "overall",
            "sampling": "random",
            "warm_start": ",".join(sources) if sources else "all",
            "held_out": held_out,
            "block_size": min(20, -(-measured // 3)),  # that there are three to compare
        }
        return cls(device, **{**given, **changes})

    @property
    def has_target(self) -> bool:
        """Whether the campaign is to reach an accuracy. A transfer measures so many, and ends."""
        return not self.warm_start or self.initial < self.max_models

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
            return cls(**{"predictor": "mlp", **data, "spec": spec})
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"the stored settings are unreadable ({error}): use the esm-profiler that wrote it"
            ) from error
