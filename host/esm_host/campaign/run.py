"""Campaign folder as Python objects: settings, result, and data frames of the measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.campaign.folder import RunFolder, resume_command
from esm_host.campaign.latency import Latency
from esm_host.campaign.measured_contexts import MeasuredContexts
from esm_host.dataset.campaign_metric import CAMPAIGN_METRICS, LATENCY, CampaignMetric
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.table import BlockTable, Dataset, Figures, best_attempts
from esm_host.encoding.base import choice_columns
from esm_host.errors import DatasetError, UsageError
from esm_host.evaluation.conformal import LeftOutErrors
from esm_host.evaluation.cross_device import CrossDeviceAccuracy, evaluate_across
from esm_host.evaluation.device_states import STATE_COLUMNS, state_row
from esm_host.extension.settings import Settings
from esm_host.extension.training import train
from esm_host.plugins import own_failures
from esm_host.predictors import predictor_class
from esm_host.predictors.base import IntervalPredictor
from esm_host.sampling import make_sampler
from esm_host.sampling.bins import DepthBins, depth_range
from esm_host.typed import typed
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_protos.metrics import METRICS
from esm_protos.nearest import unknown

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_host.encoding.sources import SourcesEncoder
    from esm_host.predictors.base import Predictor


@dataclass(frozen=True)
class RoundProgress:
    """Progress of a campaign's last round.

    Attributes:
        number: Number of the round, from 0.
        is_check: Whether the round checks the predictor.
        measured_models: Number of its measured models.
        planned_models: Number of its planned models.
        is_evaluated: Whether the round has ended, and the next one has not begun.
    """

    number: int
    is_check: bool
    measured_models: int
    planned_models: int
    is_evaluated: bool


@dataclass(frozen=True, eq=False)
class _Records:
    """Content of the store when it was read; metrics by architecture key.

    ``datasets`` and ``figures`` are by metric. ``held_out`` has the keys of the models of the last
    check. ``measured`` counts the models of the campaign's rounds, without those of searches.
    ``progress`` is None before the first round.
    """

    table: BlockTable
    datasets: dict[str, Dataset]
    held_out: set[str]
    figures: dict[str, Figures]
    rounds: list[dict[str, Any]]
    metrics: dict[str, dict[str, float]]
    measured: int
    progress: RoundProgress | None


@dataclass(frozen=True, eq=False)
class Run:
    """Campaign, finished or not; read on first use and then unchanged.

    It has a predictor of each metric. Methods that predict or evaluate take the leading one;
    :meth:`of` chooses another.

    Attributes:
        path: Folder of the campaign.
        settings: Settings of the campaign.
        result: Content of ``result.json``; None until the campaign ends.
        metric: Name of the metric to predict and evaluate; empty for the leading one.
    """

    path: Path
    settings: Settings
    result: dict[str, Any] | None = field(repr=False)
    metric: str = ""

    @typed
    def of(self, metric: str) -> Run:
        """Return the campaign with another metric to predict and evaluate.

        Args:
            metric: Name of a metric that the campaign learns, such as ``"energy"``. Latencies are
                measured in any case.

        Raises:
            UsageError: the campaign does not measure it.
        """
        measured = {LATENCY.name, *(each.name for each in self.settings.metrics)}
        if metric not in measured:
            raise self._unlearnt(metric)
        return self if metric == self._metric.name else replace(self, metric=metric)

    @property
    def learnt(self) -> tuple[CampaignMetric, ...]:
        """Metrics that the campaign has a predictor of, the leading one first."""
        about = (self.result or {}).get("metrics", {})
        metrics = self.settings.metrics
        return tuple(each for each in metrics if "problem" not in about.get(each.name, {}))

    def _unlearnt(self, metric: str) -> UsageError:
        if metric not in CAMPAIGN_METRICS:
            return UsageError(
                f"{argument('metric')}: {unknown('metric', metric, CAMPAIGN_METRICS)}"
            )
        learnt = [each.name for each in self.settings.metrics]
        return UsageError(
            f"{self.path} has no predictor of {metric}: it has {', '.join(learnt)}; profile with "
            f"{argument('metric')} {','.join([*learnt, metric])}"
        )

    @property
    def _metric(self) -> CampaignMetric:
        return CAMPAIGN_METRICS[self.metric] if self.metric else self.settings.lead

    @property
    def converged(self) -> bool:
        """Whether the campaign has ended and reached its target."""
        return self.result is not None and bool(self.result["converged"])

    @property
    def progress(self) -> RoundProgress | None:
        """Progress of the last round; None once the campaign has ended, or before it begins.

        A campaign that is resumed has a ``result`` of its earlier end, and measures on.
        """
        progress, result = self._records.progress, self.result
        if progress is None or result is None:
            return progress
        # A campaign that was finished within a round has a result with that round.
        later = progress.number >= len(result["rounds"])
        return progress if later or self._records.measured > result["measured_models"] else None

    def _repr_html_(self) -> str:
        """Return the progress of the campaign and its accuracy by depth, for notebooks."""
        frame = self.measurements()
        ended = self.result is not None and self.progress is None
        state = "finished" if ended else "not finished"
        if ended and self.settings.has_target:
            state = "converged" if self.converged else "not converged"
        title = f"{self.space.name} on {self.settings.device}: {len(frame)} measured, {state}"
        last = self.accuracy()
        last = last[last["round"] == last["round"].max()]
        table: str = last[["bin", "samples", "accuracy_percent"]].to_html(
            index=False, na_rep="-", border=0, float_format="{:.1f}".format
        )
        return f"<p>{escape(title)}</p>{table if len(last) else ''}"

    def measurements(self) -> pd.DataFrame:
        """Return one row per measured architecture, in the order of the plan.

        Columns:

        - ``architecture_key``, ``architecture`` (as text), ``round``, ``block``
        - ``depth``, ``bin`` (range of depths), ``unit1_depth`` ...
        - ``mean_FEATURE``: mean over the blocks; ``FEATURE_WORD``: number of blocks with this
          word, for features whose values are words
        - ``resolution``: pixels, if architectures have their own; one column per context
        - ``latency_ms``: at the device's usual pace, unless the campaign is raw
        - ``interval_percent``: half-width of the 95 % confidence interval for the device at any
          time
        - ``raw_ms``: as measured; ``verdict``; ``reasons``: a tuple
        - ``predicted_ms``: prediction without this model (of a fold, or of a check); NaN until
          the campaign ends; ``error_percent``: error of that prediction
        - of each other metric that the campaign learns the same, as ``energy_mj``,
          ``energy_interval_percent``, ``energy_verdict``, ``energy_reasons``,
          ``energy_predicted_mj`` and ``energy_error_percent``; NaN or empty without a value
        - one column per measured metric, such as ``load_ms`` (docs/timing.md); NaN if not
          measured
        """
        records, bins = self._records, self._bins
        dataset = records.datasets[LATENCY.name]
        keys = [a.key for a in dataset.architectures]
        plan = records.figures[LATENCY.name]
        planned = dict(zip((a.key for a in plan.architectures), plan.rounds.tolist(), strict=True))
        used = best_attempts(records.table)
        index = bins.of(dataset.depth)
        frame = pd.DataFrame(
            {
                "architecture_key": pd.Series(keys, dtype=object),
                "architecture": [a.to_text() for a in dataset.architectures],
                "round": [planned[key] for key in keys],
                "block": [used[key] + 1 for key in keys],
                "depth": dataset.depth,
                "bin": [self._bin_label(number) for number in index.tolist()],
                **self._features(dataset.architectures),
            }
        )
        for name, values in records.datasets.items():
            frame = frame.assign(**self._columns(CAMPAIGN_METRICS[name], values, keys))
        metrics = {name: v for name, v in self._metrics(keys).items() if name not in frame}
        return frame.assign(**metrics)

    def _columns(
        self, metric: CampaignMetric, dataset: Dataset, keys: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the columns of a metric; NaN, or empty, where an architecture has no value."""
        verdict, reasons = metric.column("verdict"), metric.column("reasons")
        frame = pd.DataFrame(
            {
                metric.key: dataset.latency_ms,
                metric.column("interval_percent"): 100 * dataset.interval,
                **({"raw_ms": dataset.raw_ms} if metric == LATENCY else {}),
                verdict: [judgement.verdict.value for judgement in dataset.judgements],
                reasons: [judgement.reasons for judgement in dataset.judgements],
            },
            index=pd.Index([a.key for a in dataset.architectures], dtype=object),
        ).reindex(keys)
        held_out = self._predicted(metric)
        predicted = np.array([held_out.get(key, np.nan) for key in keys], dtype=float)
        frame[metric.predicted] = predicted
        frame[metric.column("error_percent")] = 100 * (predicted / frame[metric.key] - 1)
        frame[verdict] = frame[verdict].fillna("")
        frame[reasons] = [each if isinstance(each, tuple) else () for each in frame[reasons]]
        return {str(name): column.to_numpy() for name, column in frame.items()}

    def _metrics(self, keys: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return every metric that was measured, shape ``(n,)`` each."""
        values = [self._records.metrics[key] for key in keys]
        measured = {name for each in values for name in each}
        known = [metric.key for metric in METRICS if metric.key in measured]
        return {
            name: np.array([each.get(name, np.nan) for each in values], dtype=float)
            for name in [*known, *sorted(measured - set(known))]
        }

    def dataset(self) -> Dataset:
        """Return the measurements as arrays."""
        return self._records.datasets[self._metric.name]

    def figures(self) -> Figures:
        """Return the figures of every planned architecture, reference models included."""
        return self._records.figures[self._metric.name]

    def failures(self) -> pd.DataFrame:
        """Return the architectures that could not be measured.

        Columns: ``architecture_key``, ``message``.
        """
        failures = self._records.table.failures
        return pd.DataFrame(list(failures.items()), columns=["architecture_key", "message"])

    def blocks(self) -> pd.DataFrame:
        """Return one row per measured block, in the order of time.

        Columns: ``block`` (from 1), ``block_id``, ``round``, ``device``, ``pace``,
        ``worst_deviation_percent`` (of a reference, when the block was judged), ``passed`` (None
        before judgement), ``models``, ``busy_s``, ``wall_s``. ``pace`` is 1 at the device's usual
        pace and 1.1 if a tenth slower. Without the agent's reference models it is relative to the
        median of the campaign.
        """
        table = self._records.table
        worst = [block.worst_deviation for block in table.blocks]
        return pd.DataFrame(
            {
                "block": range(1, len(table.blocks) + 1),
                "block_id": [block.block_id for block in table.blocks],
                "round": [block.round for block in table.blocks],
                "device": self._devices,
                "pace": table.quality.factors,
                "worst_deviation_percent": [
                    np.nan if share is None else 100 * share for share in worst
                ],
                "passed": pd.Series([block.passed for block in table.blocks], dtype=object),
                "models": [len(models) for models in table.models],
                "busy_s": [block.busy_ns / 1e9 for block in table.blocks],
                "wall_s": [block.wall_seconds for block in table.blocks],
            }
        )

    def references(self) -> pd.DataFrame:
        """Return one row per block and reference model.

        Columns: ``block``, ``device``, ``reference`` (from 1), ``latency_ms`` (as measured),
        ``deviation_percent`` (with the device's pace divided out). NaN if the reference failed.
        ``limit_percent`` is the deviation above which the block fails: the tolerance, or what the
        interval of the reference explains if that is more.
        """
        table = self._records.table
        blocks, references = table.references_ms.shape
        limits = table.quality.limits(self.settings.reference_tolerance_percent / 100)
        return pd.DataFrame(
            {
                "block": np.repeat(np.arange(1, blocks + 1), references),
                "device": np.repeat(np.array(self._devices, dtype=object), references),
                "reference": np.tile(np.arange(1, references + 1), blocks),
                "latency_ms": table.references_ms.ravel(),
                "deviation_percent": 100 * table.quality.deviations.ravel(),
                "limit_percent": 100 * limits.ravel(),
            }
        )

    def paces(self) -> pd.DataFrame:
        """Return one row per block and reference model of the agent, smallest weights first.

        Columns: ``block``, ``device``, ``at_s`` (end of the block, counted from the end of the
        first), ``reference`` (name), ``weight_mb``, ``latency_ms``, ``usual_ms``,
        ``slower_percent`` (than usual; NaN if unknown). Empty for a campaign without these
        models.
        """
        table = self._records.table
        ends = [datetime.fromisoformat(block.measured_at) for block in table.blocks]
        rows = [
            {
                "block": number,
                "device": device,
                "at_s": (ended - ends[0]).total_seconds(),
                "reference": reading.name,
                "weight_mb": reading.weight_bytes / 1e6,
                "latency_ms": reading.latency_ms,
                "usual_ms": reading.usual_ms,
                "slower_percent": 100 * (reading.latency_ms / reading.usual_ms - 1),
            }
            for number, (device, ended, readings) in enumerate(
                zip(self._devices, ends, table.agent, strict=True), start=1
            )
            for reading in readings
        ]
        names = ["block", "device", "at_s", "reference", "weight_mb", "latency_ms", "usual_ms"]
        return pd.DataFrame(rows, columns=[*names, "slower_percent"])

    def rounds(self) -> pd.DataFrame:
        """Return one row per finished round.

        Columns: ``round``; ``measured_models``, ``trusted_models`` and ``failed_models`` so far;
        ``accuracy_percent``, ``worst_bin_percent``, ``references_passed``, ``remeasured_blocks``,
        ``training_s``.
        """
        names = (
            *("round", "measured_models", "trusted_models", "failed_models", "accuracy_percent"),
            *("worst_bin_percent", "references_passed", "remeasured_blocks", "training_s"),
        )
        rows = [
            (
                number,
                *(entry[name] for name in names[1:5]),
                min((b["accuracy_percent"] for b in entry["bins"] if b["samples"]), default=np.nan),
                entry["qc"]["passed"],
                entry["qc"]["remeasured_blocks"],
                entry["training_seconds"],
            )
            for number, entry in enumerate(self._records.rounds)
        ]
        return pd.DataFrame(rows, columns=list(names))

    def accuracy(self) -> pd.DataFrame:
        """Return one row per finished round and depth bin, and one over all depths.

        Columns: ``round``, ``measured_models`` (of all depths), ``bin`` (``all`` over all
        depths), ``depth_min``, ``depth_max``, ``samples``, ``accuracy_percent``
        (without samples that estimated from other bins, or NaN). A metric that does not lead is
        evaluated in the last round only.
        """
        rows = []
        for number, entry in self._evaluated:
            common = {"round": number, "measured_models": entry["measured_models"]}
            ends = entry["bins"][0]["depth_min"], entry["bins"][-1]["depth_max"]
            overall = (*ends, entry["trusted_models"], entry["accuracy_percent"])
            bins = [
                (b["depth_min"], b["depth_max"], b["samples"], b["accuracy_percent"])
                for b in entry["bins"]
            ]
            for low, high, samples, accuracy in (*bins, overall):
                rows.append(
                    {
                        **common,
                        "bin": depth_range(low, high),
                        "depth_min": low,
                        "depth_max": high,
                        "samples": samples,
                        "accuracy_percent": np.nan if accuracy is None else accuracy,
                    }
                )
            rows[-1]["bin"] = "all"
        names = ["round", "measured_models", "bin", "depth_min", "depth_max", "samples"]
        return pd.DataFrame(rows, columns=[*names, "accuracy_percent"])

    @property
    def _evaluated(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Numbers and results of the rounds in which the metric was evaluated."""
        rounds = self._records.rounds
        if self._metric == self.settings.lead:
            return list(enumerate(rounds))
        entry = (self.result or {}).get("metrics", {}).get(self._metric.name, {})
        return [(len(rounds) - 1, entry)] if "bins" in entry else []

    def states(self) -> pd.DataFrame:
        """Return the states of the devices, one row per moment.

        Columns: ``block``, ``device``, and those of
        :func:`~esm_host.evaluation.device_states.state_row`. ``at_s`` counts from the block's
        first run.
        """
        rows = [
            {"block": number, "device": device, **state_row(state)}
            for number, (device, states) in enumerate(
                zip(self._devices, self._records.table.states, strict=True), start=1
            )
            for state in states
        ]
        return pd.DataFrame(rows, columns=["block", "device", *STATE_COLUMNS])

    @typed
    def predict(
        self, architectures: Sequence[Architecture | Mapping[str, Any] | str]
    ) -> NDArray[np.float64]:
        """Return latencies predicted by the campaign's predictor, ms, shape ``(n,)``.

        Of another metric, see :meth:`of`, they are its values in its unit.

        Args:
            architectures: Architectures, their JSON or their short forms.

        Raises:
            DatasetError: the predictor does not exist yet, or is damaged.
            InvalidArchitectureError: an architecture is not in the search space.
            UsageError: a context is more than 10 times beyond the measured ones, or a prediction
                is infinite. Half beyond them is a warning.
        """
        return self.function().many(architectures)

    def latency(self) -> Latency:
        """Return the predictor of the latency as a function of one architecture.

        It suits loops with many calls, and other processes.

        Raises:
            UsageError: the campaign does not learn the latency.
            DatasetError: the predictor does not exist yet, or is damaged.
        """
        own = self if self._metric == LATENCY else self.of(LATENCY.name)
        return own.function()

    def function(self) -> Latency:
        """Return the predictor of the metric as a function of one architecture.

        Raises:
            DatasetError: the predictor does not exist yet, or is damaged.
        """
        return self._function

    @cached_property
    def _function(self) -> Latency:
        self.check_predictor()
        path = self._folder.files(self._metric).onnx
        # A predictor without an ONNX form is fitted again.
        model = path.read_bytes() if path.exists() else self.predictor
        return Latency(self.path, self.settings, self.encoder, model, self.measured_contexts)

    @cached_property
    def measured_contexts(self) -> MeasuredContexts | None:
        """Contexts that were measured, also by searches; None if the space has none."""
        if not self.space.contexts:
            return None
        return MeasuredContexts.of(self.path, self._records.datasets[LATENCY.name].architectures)

    @typed
    def predict_interval(
        self, architectures: Sequence[Architecture | Mapping[str, Any] | str], coverage: float = 0.9
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lower and upper ends of prediction intervals, ms, shape ``(n,)`` each.

        ``auto`` estimates its uncertainty for each architecture. The intervals of other
        predictors all have the same relative width, from their out-of-fold errors.

        Args:
            architectures: Architectures, their JSON or their short forms.
            coverage: Share of latencies that the intervals shall cover.

        Raises:
            UsageError: the coverage is not between 0 and 1.
            DatasetError: the predictor does not exist yet, or too few models were held out.
            InvalidArchitectureError: an architecture is not in the search space.
        """
        if not 0 < coverage < 1:
            raise UsageError(f"coverage {coverage:g}: give a share above 0 and below 1")
        settings = self.settings
        own = not settings.adapts
        if own and issubclass(predictor_class(settings.predictor), IntervalPredictor):
            predictor = self.predictor
            assert isinstance(predictor, IntervalPredictor)
            read = [self.space.read(given) for given in architectures]
            encodings = self.encoder.encode(read)
            if self.measured_contexts is not None:
                self.measured_contexts.check(read)
            with own_failures(predictor):
                return predictor.predict_interval(encodings, coverage)
        latency_ms = self.predict(architectures)
        judged = self.measurements()
        try:
            errors = LeftOutErrors(
                judged[self._metric.key].to_numpy(), judged[self._metric.predicted].to_numpy()
            )
        except ValueError as error:
            raise DatasetError(
                f"{self.path} has {error}: measure more, or use {argument('predictor')} auto"
            ) from error
        factor = errors.within(coverage)
        return latency_ms / factor, latency_ms * factor

    @typed
    def against(self, other: Run) -> CrossDeviceAccuracy:
        """Evaluate the campaign's predictor on the measurements of another campaign.

        Args:
            other: Campaign of the same space, such as one on another device.

        Raises:
            UsageError: the other campaign has another search space.
            DatasetError: the predictor does not exist yet, or the other campaign is empty.
            InvalidArchitectureError: the options of the spaces differ.
        """
        if other.space.name != self.space.name:
            raise UsageError(
                f"{other.path} is of the space {other.space.name}, {self.path} of "
                f"{self.space.name}: give two campaigns of one space"
            )
        metric = self._metric
        theirs, own = other._records.datasets.get(metric.name), self.dataset()
        if theirs is None:
            raise UsageError(f"{other.path} did not measure {metric.title}: give one that did")
        if not len(theirs):
            raise DatasetError(f"{other.path} holds no measurements yet: resume it first")
        known = {a.key for a in own.architectures}
        return evaluate_across(
            theirs.latency_ms,
            self.predict(theirs.architectures),
            theirs.depth,
            np.array([a.key in known for a in theirs.architectures]),
            self._bins,
        )

    @cached_property
    def predictor(self) -> Predictor:
        """Predictor of the metric, fitted again to the same measurements.

        Raises:
            DatasetError: the campaign has not ended.
        """
        self.check_predictor()
        settings, encoder = self.settings, self.encoder
        predictor = self._folder.predictors(settings, encoder)(0)
        training_set = self.dataset().without(self._records.held_out)
        return train(predictor, encoder, training_set, settings)

    def check_predictor(self) -> None:
        """Check that the campaign has a predictor of the metric.

        Raises:
            UsageError: the campaign does not learn the metric.
            DatasetError: the campaign has not ended, or has too few values of the metric.
        """
        if self._metric not in self.settings.metrics:
            raise self._unlearnt(self._metric.name)
        if self.result is None:
            raise DatasetError(
                f"{self.path} has no predictor yet: {resume_command(self.path)} trains it"
            )
        about = self.result.get("metrics", {}).get(self._metric.name, {})
        if problem := about.get("problem"):
            raise DatasetError(f"{self.path} has no predictor of {self._metric.title}: {problem}")

    @cached_property
    def encoder(self) -> Encoder:
        """Encoder of the campaign's predictor.

        Raises:
            DatasetError: the file of the sources is missing or damaged.
        """
        return self._folder.encoder(self.settings, self.space)

    @property
    def sources_encoder(self) -> SourcesEncoder:
        """Encoder with the predictions of a warm start's sources.

        Raises:
            DatasetError: the file of the sources is missing or damaged.
        """
        return self._folder.sources_encoder(self.space)

    @typed
    def sample(
        self,
        n: int,
        sampling: str = "balanced",
        seed: int = 0,
        contexts: Mapping[str, int] | None = None,
    ) -> list[Architecture]:
        """Return ``n`` different architectures of the search space; fewer if it is exhausted.

        Args:
            n: Number of architectures.
            sampling: ``"balanced"`` (equally many of every depth bin), ``"random"``, or your own
                sampler as ``path/to/file.py:Class``.
            seed: Random seed.
            contexts: Value of each context by name, ``{"past": 1500}``; those that are left out
                are drawn from the campaign's values.

        Raises:
            UsageError: ``n`` or ``seed`` is negative, or the sampling does not exist.
            InvalidSpaceError: a context does not exist, or its value is out of range.
        """
        if seed < 0:
            raise UsageError(f"seed {seed}: give 0 or more")
        sampler = make_sampler(sampling, self.space.at(**(contexts or {})), self._bins)
        return sampler.sample(n, np.random.default_rng(seed))

    @cached_property
    def space(self) -> SearchSpace:
        """Search space of the campaign."""
        return self.settings.search_space()

    # Sources of the frames

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(self.path)

    @cached_property
    def _records(self) -> _Records:
        with closing(self._folder.open_store()) as store, store.snapshot():
            measurements = Measurements(store, self.settings.spec, self.settings.raw)
            metrics = dict.fromkeys([LATENCY, *self.settings.metrics])
            datasets = {metric.name: measurements.of(metric) for metric in metrics}
            evaluated = store.rounds()
            keys = {a.key for a in datasets[LATENCY.name].architectures}
            planned = [each for number, each in store.plan().items() if number >= 0]
            measured = [sum(a.key in keys for a in each) for each in planned]
            progress = None
            if planned:
                last = len(planned) - 1
                progress = RoundProgress(
                    last,
                    last in store.checks(),
                    measured[last],
                    len(planned[last]),
                    len(evaluated) > last,
                )
            return _Records(
                measurements.table(),
                datasets,
                store.held_out(),
                {metric.name: measurements.figures(metric) for metric in metrics},
                # The result has one round more if the campaign was finished within a round.
                max(evaluated, (self.result or {}).get("rounds", []), key=len),
                measurements.metrics(),
                sum(measured),
                progress,
            )

    def _predicted(self, metric: CampaignMetric) -> dict[str, float]:
        """Return the held-out predictions of a metric, by architecture key."""
        path, name = self._folder.files(metric).predictions, metric.predicted
        try:
            frame = pd.read_csv(path, dtype={"architecture_key": str, name: float})
            found = dict(zip(frame["architecture_key"], frame[name], strict=True))
            return {} if self.result is None else found  # of an earlier end
        except FileNotFoundError:
            return {}
        except (KeyError, ValueError) as error:
            raise DatasetError(
                f"{path} is damaged ({str(error).splitlines()[0]}): "
                f"{resume_command(self.path)} writes it again"
            ) from error

    @cached_property
    def _bins(self) -> DepthBins:
        return self.settings.depth_bins(self.space)

    def _bin_label(self, number: int) -> str:
        depths = self._bins.depths(number)
        return depth_range(depths[0], depths[-1])

    @property
    def _devices(self) -> list[str]:
        """Device of each block."""
        blocks = self._records.table.blocks
        return [block.device for block in blocks]

    def _features(self, architectures: Sequence[Architecture]) -> dict[str, NDArray[Any]]:
        """Return columns of the architectures: unit depths, features, contexts and resolution.

        A numeric feature has its mean over the blocks. A feature of words has one count per word.
        """
        space = self.space
        encoded = space.encode(architectures)
        codes = space.blocks_of(encoded)
        present = codes >= 0
        columns: dict[str, NDArray[Any]] = {
            f"unit{unit + 1}_depth": present[:, unit].sum(axis=1)
            for unit in range(space.unit_count)
        }
        for feature, values in zip(space.features, space.feature_values.T, strict=True):
            if feature.has_words:
                for number, word in enumerate(feature.values):
                    count = (present & (values[codes] == number)).sum(axis=(1, 2))
                    columns[f"{feature.name}_{word}"] = count
                continue
            total = values[codes].sum(axis=(1, 2))  # code -1 (no block) has value 0
            columns[f"mean_{feature.name}"] = total / np.maximum(present.sum(axis=(1, 2)), 1)
        names, tables = choice_columns(space)
        chosen = space.choices_of(encoded)
        values = [column for place, table in tables for column in table[chosen[:, place]].T]
        columns |= {n.replace(".", "_"): each for n, each in zip(names, values, strict=True)}
        columns |= dict(zip(space.contexts, space.contexts_of(encoded).T, strict=True))
        if space.resolutions:
            columns["resolution"] = space.resolution_of(encoded)
        return columns


@typed
def load_run(path: str | Path) -> Run:
    """Open a campaign's folder for reading.

    Raises:
        UsageError: the folder holds no campaign.
        DatasetError: the folder is damaged.
    """
    folder = RunFolder(Path(path))
    settings = folder.read_settings()
    result: dict[str, Any] | None = None
    try:
        result = json.loads(folder.result.read_text())
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise DatasetError(
            f"{folder.result} is damaged ({error}): {resume_command(folder.path)} writes it again"
        ) from error
    return Run(folder.path, settings, result)
