"""``esm-host predict``: latencies that a campaign's predictor predicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_host.cli.architectures import read_architectures
from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import grouped
from esm_host.cli.options import (
    OWN,
    InContext,
    Json,
    as_share,
    metric_names,
    read_context,
    sampler_names,
)
from esm_host.cli.output import check_output, guesses_on_stderr, write_output
from esm_host.cli.table import print_table
from esm_host.sampling import SAMPLERS
from esm_protos.text import counted

if TYPE_CHECKING:
    from esm_host.dataset.campaign_metric import CampaignMetric
    from esm_host.evaluation.cross_device import CrossDeviceAccuracy

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SampleOptions:
    """Options of sampled architectures."""

    sample: Annotated[
        int, typer.Option(help="Number of architectures to draw from the search space.", min=0)
    ] = 0
    sampling: Annotated[
        str,
        typer.Option(
            help=f"Sampling method: {', '.join(SAMPLERS)}, or {OWN}.",
            autocompletion=sampler_names,
        ),
    ] = "balanced"
    seed: Annotated[int, typer.Option(help="Random seed of the sampling.", min=0)] = 0


@one_line_errors
@grouped
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a campaign.", metavar="DIR")],
    given: Annotated[
        list[str] | None,
        typer.Argument(
            help="Architectures in their short form.",
            metavar="ARCHITECTURE",
            show_default=False,
        ),
    ] = None,
    architectures: Annotated[
        Path | None,
        typer.Option(
            "--architectures",
            "-a",
            metavar="FILE",
            help="File with a short form on every line, or JSON; - is stdin.",
        ),
    ] = None,
    *,
    samples: SampleOptions,
    context: InContext = None,
    interval: Annotated[
        float | None,
        typer.Option(
            help="Also print prediction intervals of this coverage, in percent. Their relative "
            "width depends on the architecture for the predictor auto only.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Compare the predictions with this campaign's measurements, of any device.",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Metrics to predict, separated by commas, of those that the campaign learnt.",
            show_default="all",
            autocompletion=metric_names,
        ),
    ] = "",
    output: Json = None,
) -> None:
    """Predict latencies, or other metrics, of given or sampled architectures.

    The tables print architectures in their short form: the option of every block, units separated
    by |, equal neighbours counted, as in 'k3e1/2 | 2*k5e1 | k3e1 | k7e1'. If the space has several
    resolutions, the form begins with the resolution: '160 px: ...', and if it has contexts, with
    theirs: '512 past: ...'. In JSON an architecture is
    {"space": "resnet", "units": [["k3e1/2"], ["k5e1", "k5e1"], ...], "resolution": 160}.

    Example: esm-host predict runs/pi4 'k3e1/2 | 2*k5e1 | k3e1 | k7e1'
    """
    import numpy as np

    from esm_host.campaign.run import load_run
    from esm_host.dataset.campaign_metric import read_metrics
    from esm_host.errors import UsageError

    if (
        bool(given) + (architectures is not None) + (samples.sample > 0) + (against is not None)
        != 1
    ):
        raise UsageError(
            "give one of ARCHITECTURE..., --architectures FILE, --sample N and --against DIR"
        )
    check_output(output, inputs=[architectures])
    campaign, contexts = load_run(run), read_context(context)
    space = campaign.space.at(**contexts)
    metrics = read_metrics(metric) if metric else campaign.learnt
    views = {each: campaign.of(each.name) for each in metrics}
    if against is not None:
        if contexts:
            raise UsageError("--context cannot be combined with --against: leave one of them out")
        if metric and len(metrics) > 1:
            raise UsageError(f"--against compares one metric, not --metric {metric}: give one")
        with guesses_on_stderr():
            found = views[metrics[0]].against(load_run(against))
        _show_against(found, output)
        return
    if given:
        chosen = [space.read(text) for text in given]
    elif architectures is not None:
        chosen = read_architectures(architectures, space)
    else:
        chosen = campaign.sample(samples.sample, samples.sampling, samples.seed, contexts)
    with guesses_on_stderr():
        columns: dict[str, list[Any]] = {
            each.key: view.predict(chosen).tolist() for each, view in views.items()
        }
        if interval is not None:
            share = as_share("--interval", interval)
            for each, view in views.items():
                ends = view.predict_interval(chosen, share)
                columns[_interval(each)] = np.stack(ends, axis=1).tolist()
    results: list[dict[str, Any]] = [
        {
            **{name: values[row] for name, values in columns.items()},
            "key": a.key,
            "depth": a.depth,
            "architecture": a.to_json(),
        }
        for row, a in enumerate(chosen)
    ]
    if output is not None:
        text = json.dumps({"schema_version": SCHEMA_VERSION, "results": results}, indent=2)
        write_output(output, text, f"{counted(len(results), 'prediction')} written to {output}")
        return
    headings = [heading for each in metrics for heading in _headings(each, interval is not None)]
    headings += ["blocks", "architecture"]
    rows = [
        (
            *(
                f"{each.shown_factor * value:.4f}"
                for each in metrics
                for value in (result[each.key], *result.get(_interval(each), ()))
            ),
            str(architecture.depth),
            architecture.to_text(),
        )
        for architecture, result in zip(chosen, results, strict=True)
    ]
    print_table(headings, rows, right=range(len(headings) - 1))


def _interval(metric: CampaignMetric) -> str:
    """Return the name of the prediction intervals of a metric in JSON."""
    return "interval_ms" if metric.name == "latency" else metric.named("interval")


def _headings(metric: CampaignMetric, with_interval: bool) -> list[str]:
    """Return the headings of a metric, in the unit that is shown."""
    stem, unit = metric.key.rpartition("_")[0], metric.shown_unit.lower()
    ends = [f"from_{unit}", f"to_{unit}"] if with_interval else []
    return [f"{stem}_{unit}", *ends]


def _show_against(found: CrossDeviceAccuracy, output: Path | None) -> None:
    from esm_host.sampling.bins import depth_range

    if output is not None:
        text = json.dumps({"schema_version": SCHEMA_VERSION, **found.to_json()}, indent=2)
        write_output(
            output, text, f"accuracy of {counted(found.samples, 'prediction')} written to {output}"
        )
        return
    seen = f", {found.seen} of them in the predictor's training set" if found.seen else ""
    print(f"{counted(found.samples, 'architecture')}{seen}")
    print(
        f"rank correlation {found.spearman:.3f} (Spearman), {found.tau:.3f} (Kendall's tau)\n"
        f"accuracy {found.accuracy_percent:.1f} %; {found.scaled_percent:.1f} % if all "
        f"predictions are multiplied by {found.pace:.3g}"
    )
    print_table(
        ("blocks", "architectures", "accuracy"),
        [
            (
                depth_range(entry.depth_min, entry.depth_max),
                str(entry.samples),
                f"{entry.accuracy_percent:.1f} %" if entry.samples else "-",
            )
            for entry in found.bins
        ],
        right=(1, 2),
    )
