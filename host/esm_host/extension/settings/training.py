"""Settings of training: the predictor and its training set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from esm_host.arguments import argument
from esm_host.encoding import make_encoder
from esm_host.errors import UsageError, check_range
from esm_host.evaluation.verdict import Verdict
from esm_host.extension.settings.seed import SeedSettings
from esm_host.predictors import encoding_for, entry
from esm_host.transfer import ALIASES, DEFAULT, method_of
from esm_models.space import SearchSpace
from esm_protos.nearest import unknown
from esm_protos.plugins import absolute

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(SeedSettings):
    """Settings of a predictor's training and evaluation.

    Attributes:
        predictor: Name in :data:`esm_host.predictors.PREDICTORS`, or path/to/file.py:Class.
        encoding: Name in :data:`esm_host.encoding.ENCODERS`, or path/to/file.py:Class. None for
            the default of the predictor.
        folds: Number of folds of the cross-validation.
        train_on: Verdicts of the samples to train and evaluate on, comma-separated.
        weights: ``"interval"`` if uncertain samples count less in training, or ``"equal"``.
        warm_start: Sources to learn from, comma-separated: latencies of other devices
            (:func:`esm_host.sources.registry.load`), or ``"all"`` of the space. The first
            architectures are then the most informative, not random ones.
        method: Few-shot method of a warm start, a name in :data:`esm_host.transfer.METHODS`.
        method_options: Arguments of the method's constructor that replace its defaults.

    Raises:
        UsageError: a value is out of range.
    """

    predictor: str = "auto"
    encoding: str | None = None
    folds: int = 5
    train_on: str = ",".join(Verdict)
    weights: str = "interval"
    warm_start: str = ""
    method: str = DEFAULT
    method_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        SeedSettings.__post_init__(self)
        check_range("folds", self.folds, 2, 100)
        if self.weights not in (known := ("equal", "interval")):
            raise UsageError(unknown("weights", self.weights, known))
        if not self.trusted_verdicts:
            raise UsageError(f"{argument('train_on')} names no verdict: give one or more")
        for name in ("predictor", "encoding", "method"):  # valid from any working folder
            if getattr(self, name) is not None:
                object.__setattr__(self, name, absolute(getattr(self, name)))
        entry(self.predictor)
        if self.predictor == "lookup-bias":
            raise UsageError(
                f"{argument('predictor')} lookup-bias needs a lookup table: evaluate it with "
                "esm-host study"
            )
        object.__setattr__(self, "method", ALIASES.get(self.method, self.method))
        method_of(self.method)
        self._check_sources()

    def _check_sources(self) -> None:
        if self.warm_start not in ("", "all") and not self.source_names:
            raise UsageError(
                f"{argument('warm_start')} '{self.warm_start}' names no source: give names "
                "separated by commas, or all"
            )
        if self.warm_start and (self.predictor != "auto" or self.encoding is not None):
            raise UsageError(
                f"{argument('warm_start')} needs {argument('predictor')} auto and its own "
                f"encoding: omit {argument('predictor')} and {argument('encoding')}"
            )
        if not self.warm_start and (self.method != DEFAULT or self.method_options):
            raise UsageError(
                f"{argument('method')} belongs to a transfer: give {argument('warm_start')} as well"
            )

    @property
    def trusted_verdicts(self) -> frozenset[Verdict]:
        """``train_on`` as a set.

        Raises:
            UsageError: a verdict is unknown.
        """
        names = [name.strip() for name in self.train_on.split(",") if name.strip()]
        for name in names:
            if name not in set(Verdict):
                raise UsageError(f"{argument('train_on')}: {unknown('verdict', name, Verdict)}")
        return frozenset(map(Verdict, names))

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names in ``warm_start``; empty for all sources."""
        if self.warm_start == "all":
            return ()
        return tuple(name.strip() for name in self.warm_start.split(",") if name.strip())

    @property
    def adapts(self) -> bool:
        """Whether the predictor is an adapted few-shot method instead of ``predictor``."""
        return bool(self.warm_start) and self.method != DEFAULT

    def encoder(self, space: SearchSpace) -> Encoder:
        """Make the encoder of ``encoding``, or the default of the predictor.

        A campaign whose ``auto`` learns from sources has its own encoder
        (:meth:`esm_host.campaign.folder.RunFolder.encoder`).

        Raises:
            UsageError: the encoding does not exist or does not suit the space.
        """
        from esm_host.encoding.codes import CodesEncoder  # slow to load

        if self.adapts:
            return CodesEncoder(space)
        return make_encoder(self.encoding or encoding_for(self.predictor, space), space)
