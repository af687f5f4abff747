"""Report of a campaign."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from esm_host.arguments import of_agent, on_command_line
from esm_host.campaign.run import Run
from esm_host.dataset.campaign_metric import LATENCY, CampaignMetric
from esm_host.evaluation.verdict import Verdict
from esm_host.extension.settings import Settings
from esm_host.report import plots
from esm_host.report.page import (
    DASH,
    Cell,
    Column,
    Fact,
    Facts,
    Figure,
    Page,
    Section,
    Step,
    Steps,
    Table,
    Text,
    bytes_text,
    duration,
    fixed,
    number,
    plural,
    significant,
)
from esm_host.report.settings import setting_facts
from esm_host.report.transfer import transfer_section
from esm_models.space import SearchSpace
from esm_protos.messages import RunOrder
from esm_protos.text import counted

VERDICTS = {
    Verdict.STABLE: "no sign of a disturbance",
    Verdict.NOISY: "the device was disturbed, or reference models deviated",
    Verdict.UNRESOLVED: "the confidence interval is wider than requested",
    Verdict.THROTTLED: "the device reduced its clock",
}

_MOST = 10  # rows of a table of extremes
_LEAST = 5  # models whose median error a caption may name


def campaign_page(run: Run) -> Page:
    """Return the page of a campaign: its measurements, its predictor and what to do next.

    Raises:
        DatasetError: the folder is damaged or holds no measurements yet.
    """
    if run.progress is not None:
        run = replace(run, result=None)  # that of an earlier end, if there is one
    measurements, blocks = run.measurements(), run.blocks()
    accuracy = run.accuracy()
    settings = run.settings
    return Page(
        eyebrow="Latency campaign",
        title=f"{run.space.name} on {settings.device}",
        lead=_lead(run, measurements, accuracy),
        status=_status(run),
        facts=list(_key_numbers(run, measurements, accuracy, blocks)),
        sections=[
            Section("next", "What to do next", "", [Steps(list(_next_steps(run, measurements)))]),
            *_predictions(run, measurements),
            *transfer_section(run, measurements),
            *_accuracy(accuracy, settings),
            *_drift(run, blocks),
            *_group(run),
            Section(
                "trust",
                "Trust in the numbers",
                _trust(measurements),
                [*_verdict_tables(measurements), *_failures(run)],
            ),
            *_architectures(measurements, run.space),
            Section("how", "Device and settings", "", _device_and_settings(run)),
        ],
    )


# The summary


def _status(run: Run) -> tuple[str, str]:
    if run.result is None:
        return "open", "not finished"
    if not run.settings.has_target:
        return "good", "transferred" if run.settings.warm_start else "done"
    target = f"{run.settings.target_accuracy_percent:g} %"
    if run.result["converged"]:
        return "good", f"converged: target of {target} reached"
    return "bad", f"not converged: target of {target} missed"


def _lead(run: Run, measurements: pd.DataFrame, accuracy: pd.DataFrame) -> str:
    text = _measured(run.space, measurements)
    last = _last_round(accuracy)
    if last.empty:
        return f"{text}; no predictor has been trained yet.{_under_way(run)}"
    overall = last[last["bin"] == "all"].iloc[0]
    error = f"with a mean error of {100 - overall['accuracy_percent']:.1f} %"
    error += ", as estimated for random ones." if run.settings.chooses else "."
    if run.result is None:
        learnt = counted(overall["measured_models"], "model")
        return f"{text}.{_under_way(run)} After {learnt}, others were predicted {error}"
    lead = run.settings.lead
    what = "Latencies" if lead == LATENCY else f"Values of {lead.title}"
    return f"{text}. {what} of other architectures are predicted {error}"


def _measured(space: SearchSpace, measurements: pd.DataFrame) -> str:
    """Return how many architectures are measured; their contexts do not count."""
    of = f"of {_large(space.count())} measured"
    if not space.contexts:
        return f"{plural(len(measurements), 'architecture')} {of}"
    models = [space.read(text) for text in measurements["architecture"]]
    networks = {replace(model, contexts=()) for model in models}
    contexts = {model.contexts for model in models}
    return f"{plural(len(networks), 'architecture')} {of} in {plural(len(contexts), 'context')}"


def _under_way(run: Run) -> str:
    """Return the round of a campaign that has not ended, as a sentence."""
    if run.progress is None:
        return ""
    now = run.progress
    which = "its check" if now.is_check else f"round {now.number}"
    if now.is_evaluated:
        return f" The campaign is under way: {which} has ended, and the next round comes."
    return (
        f" The campaign is under way in {which}: {now.measured_models} of "
        f"{counted(now.planned_models, 'model')} measured."
    )


def _key_numbers(
    run: Run, measurements: pd.DataFrame, accuracy: pd.DataFrame, blocks: pd.DataFrame
) -> Iterator[Fact]:
    target = run.settings.target_percent
    last = _last_round(accuracy)
    if not last.empty:
        overall = last.loc[last["bin"] == "all"].iloc[0]
        wanted = "on held-out models"
        if target is not None:
            wanted = f"target {target:g} %"
        elif run.settings.chooses:
            wanted = "estimated for random architectures"
        yield Fact("Accuracy", f"{overall['accuracy_percent']:.1f} %", wanted)
        bins = last[(last["bin"] != "all") & last["accuracy_percent"].notna()]
        worst = bins.loc[bins["accuracy_percent"].idxmin()]
        yield Fact(
            "Worst depth bin", f"{worst['accuracy_percent']:.1f} %", f"{worst['bin']} blocks"
        )
    check = (run.result or {}).get("rounds", [{}])[-1].get("check")
    if check and check["low_percent"] is not None:
        low, high = check["low_percent"], check["high_percent"]
        on = f"{low:.1f} to {high:.1f} on {plural(check['models'], 'random model')}"
        yield Fact("Checked", f"{check['accuracy_percent']:.1f} %", on)
    rounds = accuracy["round"].nunique()
    yield Fact("Measured", f"{len(measurements):,}", f"in {plural(rounds, 'finished round')}")
    if len(measurements):
        low, high = measurements["latency_ms"].min(), measurements["latency_ms"].max()
        yield Fact("Slowest", f"{significant(high, 3)} ms", f"fastest {significant(low, 3)} ms")
        interval = measurements["interval_percent"].median()
        stable = (measurements["verdict"] == "stable").mean()
        yield Fact("Median interval", f"±{interval:.1f} %", f"{100 * stable:.0f} % stable")
    busy = blocks["busy_s"].sum()
    wall = f"of {duration(run.result['wall_seconds'])} in all" if run.result else "so far"
    yield Fact("Device busy", duration(busy), wall)


def _next_steps(run: Run, measurements: pd.DataFrame) -> Iterator[Step]:
    folder, settings = shlex.quote(str(run.path)), run.settings
    resume = f"esm-host profile --run {folder} --resume"
    if run.result is None:
        yield Step(
            "The campaign is not finished. If it was interrupted, continue it; nothing is measured "
            "twice:",
            resume,
        )
    elif measurements[settings.lead.predicted].isna().all():
        yield Step("The folder lacks the held-out predictions. Write them:", resume)
    for warning in (run.result or {}).get("warnings", ()):
        yield Step(f"{warning[:1].upper()}{warning[1:]}.")
    if run.result is not None and run.settings.has_target and not run.result["converged"]:
        signatures = run.result.get("signatures", ())
        if all(signature["name"] != "noise" for signature in signatures):
            more = -(-settings.max_models * 3 // 2)
            yield Step(
                "The target is missed. Measure more where predictions are inaccurate:",
                f"{resume} --max-models {more}",
            )
        for signature in signatures:
            yield Step(f"{signature['text'][:1].upper()}{signature['text'][1:]}.")
    trusted = measurements["verdict"].isin(["stable"]).mean() if len(measurements) else 1.0
    if trusted < 0.75:
        reasons = _reasons(measurements)
        commonest = f" The most common reason: {reasons[0][1]}." if reasons else ""
        yield Step(
            f"{100 * (1 - trusted):.0f} % of the latencies are not stable.{commonest} "
            "Check the device before the next campaign:",
            f"esm-host devices doctor {shlex.quote(_least_stable(run, measurements))}",
        )
    if run.result is not None:
        yield Step(
            "Predict latencies of random architectures, or of your own:",
            f"esm-host predict {folder} --sample 5",
        )
        yield Step("Read the result in a program, as JSON:", str(run.path / "result.json"))
    yield Step(
        "Explore the measurements in a notebook:",
        f"esm_host.load_run({str(run.path)!r}).measurements()",
    )


def _least_stable(run: Run, measurements: pd.DataFrame) -> str:
    """Return the device, or the one of a group with the smallest share of stable latencies."""
    blocks = run.blocks()
    if blocks["device"].nunique() < 2:
        return run.settings.device
    devices = measurements["block"].map(blocks.set_index("block")["device"])
    return str((measurements["verdict"] == "stable").groupby(devices).mean().idxmin())


# Predictions


def _predictions(run: Run, measurements: pd.DataFrame) -> Iterator[Section]:
    for metric in run.settings.metrics:
        own = plots.of_metric(measurements, metric)
        yield from _predictions_of(run, metric, own.dropna(subset="error_percent"))


def _predictions_of(run: Run, metric: CampaignMetric, predicted: pd.DataFrame) -> Iterator[Section]:
    if predicted.empty:
        return
    leads, unit = metric == run.settings.lead, metric.shown_unit
    ending = "" if leads else f"-{metric.name}"
    title = "" if metric == LATENCY else f" of {metric.title}"
    error = predicted["error_percent"].abs()
    within = (error <= 5).mean()
    summary = (
        f"Held-out predictions of {plural(len(predicted), 'model')}: mean absolute error "
        f"{error.mean():.1f} %, median {error.median():.1f} %, 90 % quantile "
        f"{error.quantile(0.9):.1f} %. {_of_random(run, metric)}The dashed line marks perfect "
        "predictions."
    )
    columns = [
        Column("architecture", "architecture"),
        Column("depth", "blocks", 0),
        Column("latency_ms", f"measured ({unit})", 4),
        Column("interval_percent", "± (%)", 1),
        Column("predicted_ms", f"predicted ({unit})", 4),
        Column("error_percent", "error (%)", 1),
        Column("verdict", "verdict"),
    ]
    chart = plots.predicted_against_measured(predicted, unit)
    heading = f"Predicted against measured {metric.title}"
    yield Section(
        f"predictions{ending}",
        f"Predictions{title}",
        f"{100 * within:.0f} % of the predictions are within 5 % of the measured {metric.title}."
        f"{_outcome(run, metric)}",
        [
            Figure(f"predicted{ending}", heading, summary, chart, columns),
            *(_residuals(predicted, run.space) if leads else _bins(run, metric)),
        ],
    )


def _of_random(run: Run, metric: CampaignMetric) -> str:
    """Return the error for random architectures as sentences, if the models were chosen."""
    last = _last_round(run.of(metric.name).accuracy())
    if last.empty or not run.settings.chooses:
        return ""
    overall = last.loc[last["bin"] == "all", "accuracy_percent"].iloc[0]
    return (
        "These models are no random sample: those that the campaign learns from were chosen for "
        "what they teach. The mean error estimated for random architectures is "
        f"{100 - overall:.1f} %. "
    )


def _outcome(run: Run, metric: CampaignMetric) -> str:
    """Return whether a metric that does not lead reaches the target, as a sentence."""
    about = (run.result or {}).get("metrics", {}).get(metric.name, {})
    if metric == run.settings.lead or about.get("reached") is None:
        return ""
    reaches = "reaches" if about["reached"] else "misses"
    return f" The predictor {reaches} the target of {run.settings.target_accuracy_percent:g} %."


def _bins(run: Run, metric: CampaignMetric) -> Iterator[Table]:
    """Return the accuracy of a metric by depth, which has no chart by round."""
    rows = [
        [Cell(row.bin), _count(row.samples), _accuracy_cell(row)]
        for row in run.of(metric.name).accuracy().itertuples(index=False)
    ]
    caption = f"Accuracy of the predicted {metric.title} by depth"
    yield Table(f"bins-{metric.name}", caption, ["blocks", "#models", "#accuracy (%)"], rows)


def _accuracy_cell(row: Any) -> Cell:
    """Return the accuracy of a bin; without models it is estimated from the other bins."""
    told = fixed(row.accuracy_percent)
    if row.samples or told.value is None:
        return told
    return replace(told, text=f"{told.text}, from other bins")


def _residuals(predicted: pd.DataFrame, space: SearchSpace) -> Iterator[Figure]:
    by = {"depth": "number of blocks"}
    for feature in space.features:
        if feature.has_words:
            by |= {f"{feature.name}_{word}": f"number of {word} blocks" for word in feature.values}
        else:
            by[f"mean_{feature.name}"] = f"mean {feature.name}"
    by |= {name: name for name in space.contexts}
    if "resolution" in predicted:
        by["resolution"] = "resolution (pixels)"
    varied = {column: what for column, what in by.items() if predicted[column].nunique() > 1}
    columns = [
        Column("range", "range"),
        Column("models", "models", 0),
        Column("median_percent", "median error (%)", 2),
        Column("low_percent", "5 % quantile", 2),
        Column("high_percent", "95 % quantile", 2),
        Column("accuracy_percent", "accuracy (%)", 1),
    ]
    for index, (column, what) in enumerate(varied.items()):
        groups = plots.residual_groups(predicted, column)
        least = min(_LEAST, groups["models"].max())
        many = groups[groups["models"] >= least]
        some = f" with {plural(least, 'model')} or more" if len(many) < len(groups) else ""
        worst = many.loc[many["median_percent"].abs().idxmax()]
        way = "too slow" if worst["median_percent"] > 0 else "too fast"
        summary = (
            f"Median, 25 to 75 % and 5 to 95 % of the errors. The largest median error{some} is at "
            f"{what} {worst['range']}: {abs(worst['median_percent']):.1f} % {way} "
            f"({plural(int(worst['models']), 'model')})."
        )
        yield Figure(
            f"residuals-{index}",
            f"Error by {what}",
            summary,
            plots.residuals(groups, what),
            columns,
            half=True,
        )


def _accuracy(accuracy: pd.DataFrame, settings: Settings) -> Iterator[Section]:
    target_percent = settings.target_percent
    last = _last_round(accuracy)
    if last.empty:
        return
    first = accuracy[(accuracy["round"] == 0) & (accuracy["bin"] == "all")].iloc[0]
    overall = last[last["bin"] == "all"].iloc[0]
    summary = (
        f"Over all depths: {first['accuracy_percent']:.1f} % with "
        f"{counted(first['measured_models'], 'model')}, {overall['accuracy_percent']:.1f} % with "
        f"{overall['measured_models']}."
    )
    if target_percent is not None:
        bins = last[last["bin"] != "all"].dropna(subset="accuracy_percent")
        passing = int((bins["accuracy_percent"] >= target_percent).sum())
        summary = (
            f"After the last round {passing} of {plural(len(last) - 1, 'depth bin')} reach "
            f"{target_percent:g} %. {summary}"
        )
    columns = [
        Column("bin", "blocks"),
        Column("measured_models", "measured models", 0),
        Column("accuracy_percent", "accuracy (%)", 1),
        Column("samples", "models of these depths", 0),
    ]
    yield Section(
        "accuracy",
        "Accuracy by round",
        "100 minus the mean absolute percentage error (MAPE) "
        + ("expected of random architectures." if settings.chooses else "of held-out predictions."),
        [
            Figure(
                "rounds",
                "Accuracy of each depth bin against the number of measured models",
                summary,
                plots.accuracy_by_round(accuracy, target_percent),
                columns,
            )
        ],
    )


def _drift(run: Run, blocks: pd.DataFrame) -> Iterator[Section]:
    if blocks.empty:
        return
    tolerance = run.settings.reference_tolerance_percent
    devices = blocks["device"].nunique()
    paces = run.paces().dropna(subset="slower_percent")
    low, high = 100 * (blocks["pace"].min() - 1), 100 * (blocks["pace"].max() - 1)
    failed = int(blocks["passed"].eq(False).sum())
    of = f" of {devices} devices" if devices > 1 else ""
    pace = (
        f"Over {plural(len(blocks), 'block')}{of} the pace went from {_slower(low)} than usual to "
        f"{_slower(high)}. {_pace_note(run, paces)}"
    )
    references = run.references()
    left = references["deviation_percent"].dropna()
    remaining = (
        f"After correction for the pace, the references' deviations have a median of "
        f"{left.median() if len(left) else 0:.1f} % and a 90 % quantile of "
        f"{left.quantile(0.9) if len(left) else 0:.1f} %. "
        f"{deviations_above(references, tolerance)} "
        f"When judged after its measurement, {failed} of {plural(len(blocks), 'block')} failed"
        f"{' (vertical lines)' if failed else ''}."
    )
    yield Section(
        "drift",
        "Drift of the device",
        f"Every block times the same {plural(run.settings.references, 'reference model')}"
        f"{' and those of the agent' * (not paces.empty)}, which show the pace of the device.",
        [
            Figure(
                "pace",
                "Pace of the device, block by block",
                pace,
                plots.pace(blocks),
                [
                    Column("block", "block", 0),
                    Column("device", "device"),
                    Column("slower_percent", "slower than usual (%)", 1),
                ],
            ),
            *_paces(paces),
            Figure(
                "deviations",
                "Deviation of each reference model after correction",
                remaining,
                plots.deviations(references, blocks, tolerance),
                [
                    Column("block", "block", 0),
                    Column("device", "device"),
                    Column("reference", "reference", 0),
                    Column("deviation_percent", "deviation (%)", 2),
                    Column("limit_percent", "limit (%)", 2),
                ],
            ),
        ],
    )


def deviations_above(references: pd.DataFrame, tolerance_percent: float) -> str:
    """Return how many deviations are above the tolerance, and how many of them are explained."""
    above = references[references["deviation_percent"] > tolerance_percent]
    text = (
        f"Above the tolerance of {tolerance_percent:g} % (shaded band): {len(above)} of "
        f"{plural(len(references), 'deviation')}"
    )
    if above.empty:
        return f"{text}."
    explained = int((above["deviation_percent"] <= above["limit_percent"]).sum())
    return (
        f"{text}. The intervals of the references explain {explained} of them; a block fails by "
        "one that is not explained."
    )


def _slower(percent: float) -> str:
    return f"{abs(percent):.0f} % {'slower' if percent > 0 else 'faster'}"


def _pace_note(run: Run, paces: pd.DataFrame) -> str:
    if run.settings.raw:
        return "Latencies are not corrected: the campaign is raw."
    if paces.empty:
        return "Every latency is divided by the pace of its block."
    return "Latencies are at the usual pace."


def _paces(paces: pd.DataFrame) -> Iterator[Figure]:
    """Return the chart of the agent's reference models; older campaigns have none."""
    if paces.empty:
        return
    groups = paces.groupby("reference", sort=False)["slower_percent"]
    ends = [
        f"{name} from {round(low):+d} to {round(high):+d} %"
        for name, low, high in zip(groups.min().index, groups.min(), groups.max(), strict=True)
    ]
    yield Figure(
        "paces",
        "The agent's reference models against their usual pace, over time",
        "Arithmetic and memory each have a pace. The more weights a model has, the more the pace "
        f"of memory matters. Against the agent's history of this device: {', '.join(ends)}.",
        plots.paces(paces),
        [
            Column("block", "block", 0),
            Column("device", "device"),
            Column("minutes", "minutes", 1),
            Column("name", "reference model (weights)"),
            Column("slower_percent", "slower than usual (%)", 1),
        ],
    )


def _group(run: Run) -> Iterator[Section]:
    """Return the table of a group's devices; a campaign that has not ended has none."""
    devices = (run.result or {}).get("devices", ())
    if len(devices) < 2:
        return
    columns = ["device", "host name", "#blocks", "#models", "#pace", "#±", "#deviation (%)", "left"]
    rows = [
        [
            Cell(device["name"]),
            Cell(device["hostname"] or DASH),
            _count(device["blocks"]),
            _count(device["models"]),
            fixed(device["pace"], 3),
            fixed(device["pace_interval"] or None, 3),
            fixed(device["stray_percent"]),
            Cell(f"{device['left_at']}: {device['left_because']}" if device["left_at"] else DASH),
        ]
        for device in devices
    ]
    left = sum(device["left_at"] is not None for device in devices)
    paces = [device["pace"] for device in devices if device["pace"] is not None]
    lead = f"{plural(len(devices), 'device')} took part"
    lead += f", {left} of them left." if left else "."
    if len(paces) > 1:
        lead += (
            f" The slowest takes {max(paces) / min(paces):.2f} times as long as the fastest for "
            "the reference models. Latencies are corrected for this."
        )
    caption = (
        "Pace: duration of the reference models, relative to the median device. Deviation: that "
        "of the reference model furthest from the device's pace. Models: repetitions count."
    )
    yield Section(
        "group",
        "Devices of the group",
        lead,
        [Table("group-devices", caption, columns, rows, wide=["left"])],
    )


# Trust


def _trust(measurements: pd.DataFrame) -> str:
    if measurements.empty:
        return "There are no verdicts yet."
    counts = measurements["verdict"].value_counts()
    shares = [
        f"{counts[verdict.value]} {verdict.value}"
        for verdict in Verdict
        if counts.get(verdict.value)
    ]
    return f"{plural(len(measurements), 'measurement')}: {', '.join(shares)}."


def _verdict_tables(measurements: pd.DataFrame) -> Iterator[Table]:
    if measurements.empty:
        return
    counts = measurements["verdict"].value_counts()
    total = len(measurements)
    yield Table(
        "verdicts",
        "Verdicts and their meaning",
        ["verdict", "#models", "#share (%)", "meaning"],
        [
            [
                Cell(verdict.value),
                _count(counts.get(verdict.value, 0)),
                fixed(100 * counts.get(verdict.value, 0) / total),
                Cell(meaning),
            ]
            for verdict, meaning in VERDICTS.items()
        ],
        wide=["meaning"],
    )
    if reasons := _reasons(measurements):
        yield Table(
            "reasons",
            "Most common reasons for a verdict other than stable",
            ["example", "#models", "#share (%)"],
            [[Cell(text), _count(n), fixed(100 * n / total)] for n, text in reasons[:8]],
        )


def _reasons(measurements: pd.DataFrame) -> list[tuple[int, str]]:
    """Return the count and an example of each reason, most common first."""
    # Figures aside: "references off by 3.4 %" and "... by 4.1 %" are one reason.
    kinds: dict[str, list[str]] = {}
    for reasons in measurements["reasons"]:
        for reason in reasons:
            kinds.setdefault(re.sub(r"[\d.]+", "", reason), []).append(reason)
    return sorted(((len(each), each[0]) for each in kinds.values()), key=lambda kind: -kind[0])


def _failures(run: Run) -> Iterator[Table]:
    failures = run.failures()
    if len(failures):
        rows = failures.head(200).itertuples(index=False)
        yield Table(
            "failures",
            f"{plural(len(failures), 'architecture')} could not be measured",
            ["architecture", "reason"],
            [
                [Cell(row.architecture_key), Cell(on_command_line(of_agent(row.message)))]
                for row in rows
            ],
            wide=["reason"],
        )


def _architectures(measurements: pd.DataFrame, space: SearchSpace) -> Iterator[Section]:
    if measurements.empty:
        return
    slowest = measurements.nlargest(_MOST, "latency_ms")
    tables = [_architecture_table("slowest", f"The {len(slowest)} slowest", slowest)]
    predicted = measurements.dropna(subset="error_percent")
    if len(predicted):
        order = predicted["error_percent"].abs().sort_values(ascending=False).index
        worst = predicted.loc[order[:_MOST]]
        tables.append(_architecture_table("worst", f"The {len(worst)} worst predicted", worst))
    lead = "The option of every block, units separated by |; "
    lead += f"3*{space.options[-1].label} stands for three blocks in a row."
    if space.resolutions:
        lead += " The resolution comes first."
    if space.contexts:
        lead += f" {' and '.join(space.contexts).capitalize()} come before the options."
    yield Section(
        "architectures",
        "Architectures",
        lead,
        tables,
    )


def _architecture_table(name: str, caption: str, frame: pd.DataFrame) -> Table:
    titles = ["architecture", "#blocks", "#measured (ms)", "#± (%)", "#predicted (ms)"]
    rows = [
        [
            Cell(row.architecture),
            _count(row.depth),
            number(row.latency_ms),
            fixed(row.interval_percent),
            number(row.predicted_ms),
            fixed(row.error_percent, sign=True),
            Cell(row.verdict),
        ]
        for row in frame.itertuples(index=False)
    ]
    columns = [*titles, "#error (%)", "verdict"]
    return Table(name, caption, columns, rows, wide=["architecture"])


# Device and settings


def _device_and_settings(run: Run) -> list[Any]:
    parts: list[Any] = []
    if run.result is not None:
        several = len(run.result.get("devices", ())) > 1
        which = "One of the devices" if several else "The device"
        parts += [Text(f"{which}, as reported by its agent:"), device_facts(run.result["device"])]
    settings = run.settings.to_json()
    spec = settings.pop("spec")
    if not run.settings.energy_s:
        del settings["energy_time_s"]
    if spec["protocol"] == RunOrder.INTERLEAVED.value:
        spec["cache"] = "warm" if spec["long_visits"] else "cold"
    for name in ("references", "seed", "sessions"):  # campaigns have no such options
        del spec[name]
    parts += [Text("Settings of the campaign:"), setting_facts(settings)]
    return [*parts, Text("Settings of every measurement:"), setting_facts(spec)]


def device_facts(info: Mapping[str, Any]) -> Facts:
    """Return the facts of a ``DeviceInfo`` in JSON."""
    gpus = [gpu["name"] for gpu in info.get("state", {}).get("gpus", ())]
    facts = {
        "Host name": info.get("hostname"),
        "Processor": info.get("cpu_model"),
        "Cores": info.get("cpu_count"),
        "Architecture": info.get("machine"),
        "GPU": ", ".join(gpus),
        "Memory": bytes_text(info.get("memory_bytes")),
        "System": info.get("os"),
        "Runtime": info.get("runtime"),
        "Providers": ", ".join(info.get("providers", ())),
        "Python": info.get("python_version"),
        "Agent": info.get("agent_version"),
        "Confined by": ", ".join(info.get("isolation", ())),
    }
    return Facts([Fact(name, str(value)) for name, value in facts.items() if value])


def _last_round(accuracy: pd.DataFrame) -> pd.DataFrame:
    return accuracy[accuracy["round"] == accuracy["round"].max()]


def _count(value: int | np.integer) -> Cell:
    return Cell(f"{value:,}", float(value))


def _large(count: int) -> str:
    return f"{count:,}" if count < 10**7 else f"{count:.1e}"
