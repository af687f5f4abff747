"""The report of a campaign."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from esm_host.campaign.run import Run
from esm_host.evaluation.verdict import Verdict
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

VERDICTS = {
    Verdict.STABLE: "nothing speaks against the number",
    Verdict.NOISY: "something disturbed the device, or references strayed",
    Verdict.UNRESOLVED: "the interval is wider than what was asked for",
    Verdict.THROTTLED: "the device slowed itself down",
}

_MOST = 10  # rows of a table of extremes


def campaign_page(run: Run) -> Page:
    """What a campaign measured and learned, and what to do next.

    Raises:
        DatasetError: the folder is damaged or holds no measurements yet.
    """
    measurements, blocks = run.measurements(), run.blocks()
    accuracy = run.accuracy()
    settings = run.settings
    space = settings.space.rpartition(":")[2] if ".py:" in settings.space else settings.space
    return Page(
        eyebrow="Latency campaign",
        title=f"{space} on {settings.device}",
        lead=_lead(run, measurements, accuracy),
        status=_status(run),
        facts=list(_key_numbers(run, measurements, accuracy, blocks)),
        sections=[
            Section("next", "What to do next", "", [Steps(list(_next_steps(run, measurements)))]),
            *_predictions(measurements, run.space),
            *transfer_section(run, measurements),
            *_accuracy(accuracy, settings.target_accuracy_percent),
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
        return "good", "transferred"
    target = f"{run.settings.target_accuracy_percent:g} %"
    if run.result["converged"]:
        return "good", f"converged: target of {target} reached"
    return "bad", f"not converged: target of {target} missed"


def _lead(run: Run, measurements: pd.DataFrame, accuracy: pd.DataFrame) -> str:
    count = plural(len(measurements), "architecture")
    text = f"{count} of {_large(run.space.count())} measured"
    last = _last_round(accuracy)
    if last.empty:
        return f"{text}; no predictor has been trained yet."
    overall = last.loc[last["bin"] == "all", "accuracy_percent"].iloc[0]
    return (
        f"{text}. Latencies of architectures not yet seen are predicted to within "
        f"{100 - overall:.1f} % on average."
    )


def _key_numbers(
    run: Run, measurements: pd.DataFrame, accuracy: pd.DataFrame, blocks: pd.DataFrame
) -> Iterator[Fact]:
    target = run.settings.target_accuracy_percent
    last = _last_round(accuracy)
    if not last.empty:
        overall = last.loc[last["bin"] == "all"].iloc[0]
        wanted = f"target {target:g} %" if run.settings.has_target else "of models not seen"
        yield Fact("Accuracy", f"{overall['accuracy_percent']:.1f} %", wanted)
        bins = last[(last["bin"] != "all") & last["accuracy_percent"].notna()]
        worst = bins.loc[bins["accuracy_percent"].idxmin()]
        yield Fact(
            "Worst depth bin", f"{worst['accuracy_percent']:.1f} %", f"{worst['bin']} blocks"
        )
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
            "The campaign is not finished. Go on with it; nothing is measured twice:", resume
        )
    elif measurements["predicted_ms"].isna().all():
        yield Step("The folder lacks the predictions of each model unseen. Write them:", resume)
    if run.result is not None and run.settings.has_target and not run.result["converged"]:
        signatures = run.result.get("signatures", ())
        if all(signature["name"] != "noise" for signature in signatures):
            more = -(-settings.max_models * 3 // 2)
            yield Step(
                "The target is missed. Let the campaign measure more where it is inaccurate:",
                f"{resume} --max-models {more}",
            )
        for signature in signatures:
            yield Step(f"{signature['text'][:1].upper()}{signature['text'][1:]}.")
    trusted = measurements["verdict"].isin(["stable"]).mean() if len(measurements) else 1.0
    if trusted < 0.75:
        reasons = _reasons(measurements)
        commonest = f" The commonest reason: {reasons[0][1]}." if reasons else ""
        yield Step(
            f"{100 * (1 - trusted):.0f} % of the numbers are not stable.{commonest} "
            "Ask the device what can be put right before the next campaign:",
            f"esm-host devices doctor {shlex.quote(_least_stable(run, measurements))}",
        )
    if run.result is not None:
        yield Step(
            "Predict latencies of architectures, drawn or your own:",
            f"esm-host predict {folder} --sample 5",
        )
        yield Step("Read the result in a program, as JSON:", str(run.path / "result.json"))
    yield Step(
        "Look into the numbers in a notebook:",
        f"esm_host.load_run({str(run.path)!r}).measurements()",
    )


def _least_stable(run: Run, measurements: pd.DataFrame) -> str:
    """The device; of a group, the one with the smallest share of stable numbers."""
    blocks = run.blocks()
    if blocks["device"].nunique() < 2:
        return run.settings.device
    devices = measurements["block"].map(blocks.set_index("block")["device"])
    return str((measurements["verdict"] == "stable").groupby(devices).mean().idxmin())


# Predictions


def _predictions(measurements: pd.DataFrame, space: SearchSpace) -> Iterator[Section]:
    predicted = measurements.dropna(subset="error_percent")
    if predicted.empty:
        return
    error = predicted["error_percent"].abs()
    within = (error <= 5).mean()
    summary = (
        f"{plural(len(predicted), 'model')}, each predicted by a network that has not seen it: "
        f"the mean error is {error.mean():.1f} %, half of them are within {error.median():.1f} %, "
        f"nine in ten within {error.quantile(0.9):.1f} %. Dots on the dashed line are perfect."
    )
    columns = [
        Column("architecture", "architecture"),
        Column("depth", "blocks", 0),
        Column("latency_ms", "measured (ms)", 4),
        Column("interval_percent", "± (%)", 1),
        Column("predicted_ms", "predicted (ms)", 4),
        Column("error_percent", "error (%)", 1),
        Column("verdict", "verdict"),
    ]
    chart = plots.predicted_against_measured(predicted)
    yield Section(
        "predictions",
        "Predictions",
        f"{100 * within:.0f} % of the predictions are within 5 % of what was measured.",
        [
            Figure("predicted", "Predicted against measured latency", summary, chart, columns),
            *_residuals(predicted, space),
        ],
    )


def _residuals(predicted: pd.DataFrame, space: SearchSpace) -> Iterator[Figure]:
    by = {"depth": "number of blocks"}
    for feature in space.features:
        if feature.has_words:
            by |= {f"{feature.name}_{word}": f"number of {word} blocks" for word in feature.values}
        else:
            by[f"mean_{feature.name}"] = f"mean {feature.name}"
    if space.resolutions:
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
        many = groups[groups["models"] >= min(5, groups["models"].max())]
        worst = many.loc[many["median_percent"].abs().idxmax()]
        way = "too slow" if worst["median_percent"] > 0 else "too fast"
        summary = (
            f"Median, middle half and middle nine tenths of the errors. Predicted furthest off on "
            f"the whole: {what} {worst['range']}, {abs(worst['median_percent']):.1f} % {way} "
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


def _accuracy(accuracy: pd.DataFrame, target_percent: float) -> Iterator[Section]:
    last = _last_round(accuracy)
    if last.empty:
        return
    bins = last[last["bin"] != "all"].dropna(subset="accuracy_percent")
    passing = int((bins["accuracy_percent"] >= target_percent).sum())
    first = accuracy[(accuracy["round"] == 0) & (accuracy["bin"] == "all")].iloc[0]
    overall = last[last["bin"] == "all"].iloc[0]
    summary = (
        f"After the last round {passing} of {plural(len(last) - 1, 'depth bin')} reach "
        f"{target_percent:g} %. Over all depths: {first['accuracy_percent']:.1f} % with "
        f"{first['measured_models']} models, {overall['accuracy_percent']:.1f} % with "
        f"{overall['measured_models']}."
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
        "100 minus the mean absolute percentage error of predictions by networks that have not "
        "seen the model.",
        [
            Figure(
                "rounds",
                "Accuracy of each depth bin against measured models",
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
        f"{_slower(high)}. {_what_becomes_of_it(run, paces)}"
    )
    references = run.references()
    left = references["deviation_percent"].dropna()
    remaining = (
        f"With the pace taken out, half of the references' deviations are below "
        f"{left.median() if len(left) else 0:.1f} %, nine in ten below "
        f"{left.quantile(0.9) if len(left) else 0:.1f} %. {plural(failed, 'block')} of "
        f"{len(blocks)} exceeded {tolerance:g} % when judged"
        f"{', and failed (vertical lines)' if failed else ''}; the shaded band is tolerated."
    )
    yield Section(
        "drift",
        "Drift of the device",
        f"The same {plural(run.settings.references, 'reference model')} in every block "
        f"{'and those of the agent ' * (not paces.empty)}tell how fast the device was.",
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
                "What is left of each reference's deviation",
                remaining,
                plots.deviations(references, blocks, tolerance),
                [
                    Column("block", "block", 0),
                    Column("device", "device"),
                    Column("reference", "reference", 0),
                    Column("deviation_percent", "deviation (%)", 2),
                ],
            ),
        ],
    )


def _slower(percent: float) -> str:
    return f"{abs(percent):.0f} % {'slower' if percent > 0 else 'faster'}"


def _what_becomes_of_it(run: Run, paces: pd.DataFrame) -> str:
    if run.settings.raw:
        return "Latencies are as measured: the campaign is raw."
    if paces.empty:
        return "This is divided out of every latency."
    return "Latencies are at the usual pace."


def _paces(paces: pd.DataFrame) -> Iterator[Figure]:
    """The agent's reference models over time; older campaigns have none."""
    if paces.empty:
        return
    groups = paces.groupby("reference", sort=False)["slower_percent"]
    ends = [
        f"{name} from {round(low):+d} to {round(high):+d} %"
        for name, low, high in zip(groups.min().index, groups.min(), groups.max(), strict=True)
    ]
    yield Figure(
        "paces",
        "The agent's reference models against what is usual, over time",
        "Arithmetic and memory have paces of their own: the more weights a model has, the more it "
        f"feels memory's. Against what the agent remembers of this device: {', '.join(ends)}.",
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
    """Who of several devices did what; a campaign that has not ended does not tell."""
    devices = (run.result or {}).get("devices", ())
    if len(devices) < 2:
        return
    columns = ["device", "host name", "#blocks", "#models", "#pace", "#±", "#strays (%)", "left"]
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
            "the references; that is divided out of every latency."
        )
    caption = (
        "Pace: times as long as the median device for the references. Strays: of the reference "
        "that is furthest off the device's own pace. Models: those measured again count again."
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
        return "Nothing has been judged yet."
    counts = measurements["verdict"].value_counts()
    shares = [
        f"{counts[verdict.value]} {verdict.value}"
        for verdict in Verdict
        if counts.get(verdict.value)
    ]
    return f"Of {plural(len(measurements), 'number')}: {', '.join(shares)}."


def _verdict_tables(measurements: pd.DataFrame) -> Iterator[Table]:
    if measurements.empty:
        return
    counts = measurements["verdict"].value_counts()
    total = len(measurements)
    yield Table(
        "verdicts",
        "Verdicts, and what they mean",
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
            "Commonest reasons for a verdict other than stable",
            ["such as", "#models", "#share (%)"],
            [[Cell(text), _count(n), fixed(100 * n / total)] for n, text in reasons[:8]],
        )


def _reasons(measurements: pd.DataFrame) -> list[tuple[int, str]]:
    """How many numbers have a reason, and an example of it; the commonest first."""
    # By kind, not by figure: "references off by 3.4 %" and "... by 4.1 %" are one reason.
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
            ["architecture", "why"],
            [[Cell(row.architecture_key), Cell(row.message)] for row in rows],
            wide=["why"],
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
    lead = "Units apart by |, the option of every block; "
    lead += f"3*{space.options[-1].label} stands for three of them in a row."
    if space.resolutions:
        lead += " First the resolution."
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
        parts += [Text(f"{which}, as its agent saw it:"), device_facts(run.result["device"])]
    settings = run.settings.to_json()
    spec = settings.pop("spec")
    if spec["protocol"] == RunOrder.INTERLEAVED.value:
        spec["cache"] = "warm" if spec["long_visits"] else "cold"
    for name in ("references", "seed", "sessions"):  # which campaigns have no options for
        del spec[name]
    parts += [Text("What the campaign was asked for:"), setting_facts(settings)]
    return [*parts, Text("How every model was measured:"), setting_facts(spec)]


def device_facts(info: Mapping[str, Any]) -> Facts:
    """Of ``DeviceInfo`` as JSON."""
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
