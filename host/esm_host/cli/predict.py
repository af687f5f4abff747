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
from esm_host.cli.options import OWN, InContext, Json, as_share, read_context, sampler_names
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import print_table
from esm_host.sampling import SAMPLERS
from esm_protos.text import counted

if TYPE_CHECKING:
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
    output: Json = None,
) -> None:
    """Predict latencies of given or sampled architectures.

    The tables print architectures in their short form: the option of every block, units separated
    by |, equal neighbours counted, as in 'k3e1/2 | 2*k5e1 | k3e1 | k7e1'. If the space has several
    resolutions, the form begins with the resolution: '160 px: ...', and if it has contexts, with
    theirs: '512 past: ...'. In JSON an architecture is
    {"space": "resnet", "units": [["k3e1/2"], ["k5e1", "k5e1"], ...], "resolution": 160}.

    Example: esm-host predict runs/pi4 'k3e1/2 | 2*k5e1 | k3e1 | k7e1'
    """
    from esm_host.campaign.run import load_run
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
    if against is not None:
        if contexts:
            raise UsageError("--context cannot be combined with --against: leave one of them out")
        _show_against(campaign.against(load_run(against)), output)
        return
    if given:
        chosen = [space.read(text) for text in given]
    elif architectures is not None:
        chosen = read_architectures(architectures, space)
    else:
        chosen = campaign.sample(samples.sample, samples.sampling, samples.seed, contexts)
    latency_ms = campaign.predict(chosen).tolist()
    results: list[dict[str, Any]] = [
        {"latency_ms": latency, "key": a.key, "depth": a.depth, "architecture": a.to_json()}
        for a, latency in zip(chosen, latency_ms, strict=True)
    ]
    if interval is not None:
        share = as_share("--interval", interval)
        for low_ms, high_ms, result in zip(
            *campaign.predict_interval(chosen, share), results, strict=True
        ):
            result["interval_ms"] = [float(low_ms), float(high_ms)]
    if output is not None:
        text = json.dumps({"schema_version": SCHEMA_VERSION, "results": results}, indent=2)
        write_output(output, text, f"{counted(len(results), 'prediction')} written to {output}")
        return
    ends = () if interval is None else ("from_ms", "to_ms")
    headings = ("latency_ms", *ends, "blocks", "architecture")
    rows = [
        (
            *(f"{ms:.4f}" for ms in (result["latency_ms"], *result.get("interval_ms", ()))),
            str(architecture.depth),
            architecture.to_text(),
        )
        for architecture, result in zip(chosen, results, strict=True)
    ]
    print_table(headings, rows, right=range(len(headings) - 1))


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
