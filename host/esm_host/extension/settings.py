"""What a campaign is asked to do (ESM, II-B), as one frozen value that is stored with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from esm_host.arguments import argument
from esm_host.errors import DatasetError, UsageError
from esm_host.evaluation.verdict import Verdict
from esm_host.extension.presets import preset
from esm_host.predictors import encoding_for, entry
from esm_host.sampling.bins import BINS, DepthBins
from esm_host.transfer import ALIASES, DEFAULT, LEAST_SAMPLES, method_of, sampler_and_encoding
from esm_models.graph import FLOAT32
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.messages import MeasureSpec
from esm_protos.nearest import nearest

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder

PRECISION = 0.02
"""Half-width of the 95 % interval that a model is measured to, as a share."""


LEAST_INITIAL = 10
"""Architectures that a campaign begins with, at least."""
LONG_VISITS = 20
"""Of so many rounds of a campaign, the visits of one are long: these tell how long warm models
take."""


@dataclass(frozen=True)
class Settings:
    """Settings of one campaign.

    Attributes:
        space: name, or path/to/file.py:Class.
        initial: architectures measured before the first training (N_I).
        step: architectures added by each extension (N_step).
        resolution: input side, pixels; None leaves it to the space.
        dtype: of the networks' arithmetic, ``"float32"`` or ``"int8"``.
        bins: number of equally spaced depth bins (N_bins); None makes 5, or fewer where the space
            has fewer depths.
        target_accuracy_percent: that every bin must reach (Acc_TH).
        judge: ``"bins"`` (every bin must pass) or ``"overall"``.
        weight_below, weight_above: shares of a step that go to bins below and above the target
            (W_B and W_A of Algorithm 1).
        predictor: name in :data:`esm_host.predictors.PREDICTORS`.
        encoding: name in :data:`esm_host.encoding.ENCODERS`; None is the one that suits the
            predictor.
        extension: ``"balanced"`` (Algorithm 1) or ``"cost-aware"``: bins by what they are short
            of, models by how unsure the predictor is of them per second of device time.
        train_on: verdicts of the numbers that predictors are trained and judged on, by commas.
        weights: ``"interval"``: uncertain numbers count less in training; or ``"equal"``.
        references: number of the campaign's own reference models, which every block holds. Whether
            the agent's reference models are timed along is ``spec.references``.
        reference_tolerance_percent: by which one may stray before its block fails.
        max_remeasurements: of a block that failed.
        group_tolerance_percent: by which the pace of one of several devices may differ.
        block_size: architectures per block, references not counted.
        max_models: architectures measured at most; the campaign then ends unconverged.
        warm_start: sources to learn from as well, by commas: latencies of other devices
            (:func:`esm_host.sources.registry.load`), or ``"all"`` that there are of the space.
            The first architectures are then those that tell most, not those that chance draws.
        held_out: of the first architectures, with a warm start, so many are drawn by chance: they
            tell how good predictions from the others are.
        method: with a warm start, how sources are learnt: a name in
            :data:`esm_host.transfer.METHODS`.
        method_options: of the method's constructor, in place of its defaults.
        sampler: with a warm start, how the first architectures are chosen: a name in
            :data:`esm_host.transfer.SAMPLERS`, as ``"cosine:zcp"`` with the encoding that it reads;
            ``""`` is the method's own.
        raw: latencies are as measured, not at the device's usual pace.
        preset: name in :data:`esm_host.extension.presets.PRESETS`, whose values these settings
            began with; it changes nothing by itself.
        spec: settings of a measurement; by default 150 runs of a model at most, fewer where 2 % of
            the latency are reached earlier, with the agent's reference models timed along.

    Raises:
        UsageError: a value is out of range.
    """

    device: str
    space: str = "resnet"
    resolution: int | None = None
    width_mult: float = 1.0
    batch: int = 1
    dtype: str = FLOAT32
    initial: int = 300
    step: int = 100
    bins: int | None = None
    target_accuracy_percent: float = 95.0
    judge: str = "bins"
    predictor: str = "auto"
    encoding: str | None = None
    sampling: str = "balanced"
    weight_below: float = 0.8
    weight_above: float = 0.2
    extension: str = "balanced"
    train_on: str = ",".join(Verdict)
    weights: str = "interval"
    references: int = 4
    reference_tolerance_percent: float = 3.0
    max_remeasurements: int = 2
    group_tolerance_percent: float = 10.0
    block_size: int = 20
    max_models: int = 4000
    folds: int = 5
    seed: int = 0
    warm_start: str = ""
    held_out: int = 0
    method: str = DEFAULT
    method_options: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = ""
    raw: bool = False
    preset: str = ""
    spec: MeasureSpec = field(
        default_factory=lambda: MeasureSpec(
            precision=PRECISION, references=True, long_visits=LONG_VISITS
        )
    )

    def __post_init__(self) -> None:
        for name, low, high in (
            ("initial", LEAST_INITIAL, 10**9),
            ("step", 1, 10**9),
            ("target_accuracy_percent", 0, 100),
            ("weight_below", 0, 10**6),
            ("weight_above", 0, 10**6),
            ("references", 1, 64),
            ("reference_tolerance_percent", 0, 10**6),
            ("max_remeasurements", 0, 1000),
            ("group_tolerance_percent", 0, 10**6),
            ("block_size", 1, 10_000),
            ("folds", 2, 100),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{argument(name)} {value} is outside {low} to {high}")
        if self.bins is not None and not 1 <= self.bins <= 1_000:
            raise UsageError(f"{argument('bins')} {self.bins} is outside 1 to 1000")
        if self.max_models < self.initial:
            raise UsageError(
                f"{argument('max_models')} {self.max_models} is less than {argument('initial')} "
                f"{self.initial}"
            )
        if not self.weight_below:
            raise UsageError(
                f"{argument('weight_below')} 0 would never extend a bin that needs it: give more"
            )
        if self.warm_start not in ("", "all") and not self.source_names:
            raise UsageError(
                f"{argument('warm_start')} '{self.warm_start}' names no source: give names by "
                "commas, or all"
            )
        if self.warm_start and (self.predictor != "auto" or self.encoding is not None):
            raise UsageError(
                f"{argument('warm_start')} is for {argument('predictor')} auto and its own "
                f"encoding: leave {argument('predictor')} and {argument('encoding')} out"
            )
        if self.held_out and not (
            self.warm_start and 4 <= self.held_out <= self.initial - LEAST_SAMPLES
        ):
            raise UsageError(
                f"{self.held_out} held out of {self.initial}: hold out 4 or more, and leave "
                f"{LEAST_SAMPLES} or more"
            )
        object.__setattr__(self, "method", ALIASES.get(self.method, self.method))
        method_of(self.method)
        sampler_and_encoding(self.first_sampler)
        if not self.warm_start and (self.method != DEFAULT or self.method_options or self.sampler):
            name = "method" if self.method != DEFAULT or self.method_options else "sampler"
            raise UsageError(
                f"{argument(name)} is of a transfer: give {argument('warm_start')} as well"
            )
        if self.judge not in ("bins", "overall"):
            raise UsageError(f"{argument('judge')} '{self.judge}': choose bins or overall")
        if self.weights not in ("equal", "interval"):
            raise UsageError(f"{argument('weights')} '{self.weights}': choose equal or interval")
        entry(self.predictor)
        if self.predictor == "lookup-bias":
            raise UsageError(
                f"{argument('predictor')} lookup-bias needs a lookup table: compare it by "
                "esm-host study"
            )
        if not self.trusted_verdicts:
            raise UsageError(f"{argument('train_on')} names no verdict: give one or more")
        if self.extension not in ("balanced", "cost-aware"):
            raise UsageError(
                f"{argument('extension')} '{self.extension}': choose balanced or cost-aware"
            )
        if self.extension == "cost-aware" and self.sampling == "random":
            raise UsageError(
                f"{argument('extension')} cost-aware extends bins: choose {argument('sampling')} "
                "balanced"
            )
        most = self.bins or BINS
        if self.sampling == "random" and self.judge == "bins" and most > self.initial:
            raise UsageError(
                f"{argument('bins')} {most} exceeds {argument('initial')} {self.initial}"
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
    def trusted_verdicts(self) -> frozenset[Verdict]:
        """``train_on`` as a set.

        Raises:
            UsageError: a verdict is unknown.
        """
        names = [name.strip() for name in self.train_on.split(",") if name.strip()]
        for name in names:
            if name not in set(Verdict):
                raise UsageError(
                    f"{argument('train_on')}: unknown verdict '{name}': "
                    f"{nearest(name, Verdict)}choose from "
                    f"{', '.join(Verdict)}"
                )
        return frozenset(map(Verdict, names))

    @property
    def source_names(self) -> tuple[str, ...]:
        """``warm_start`` as names; none where all there are is asked for."""
        if self.warm_start == "all":
            return ()
        return tuple(name.strip() for name in self.warm_start.split(",") if name.strip())

    @property
    def first_sampler(self) -> str:
        """Sampler of the first architectures of a warm start."""
        return self.sampler or method_of(self.method).sampler

    @property
    def adapts(self) -> bool:
        """Whether the predictor is a few-shot method, adapted, instead of ``predictor``."""
        return bool(self.warm_start) and self.method != DEFAULT

    def encoder(self, space: SearchSpace) -> Encoder:
        """Of ``encoding``, or of the one that suits the predictor. A campaign that ``auto`` learns
        sources in has one of its own (:meth:`esm_host.campaign.folder.RunFolder.encoder`).

        Raises:
            UsageError: there is no such encoding, or it does not suit the space.
        """
        from esm_host.encoding import make_encoder  # slow to load
        from esm_host.encoding.codes import CodesEncoder

        if self.adapts:
            return CodesEncoder(space)
        return make_encoder(self.encoding or encoding_for(self.predictor, space), space)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "spec": self.spec.to_json()}

    def search_space(self) -> SearchSpace:
        """The space that is sampled.

        Raises:
            ModelsError: it does not exist, or not with these settings.
        """
        # A user's own space may have a constructor that does not know what is optional.
        others = {} if self.dtype == FLOAT32 else {"dtype": self.dtype}
        return load_space(
            self.space,
            resolution=self.resolution,
            width_mult=self.width_mult,
            batch=self.batch,
            **others,
        )

    def depth_bins(self, space: SearchSpace) -> DepthBins:
        """The bins of a space's depths.

        Raises:
            UsageError: it has fewer depths than bins were asked for.
        """
        if self.bins is None:
            return DepthBins.by_default(space.min_depth, space.max_depth)
        return DepthBins(space.min_depth, space.max_depth, self.bins)

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
