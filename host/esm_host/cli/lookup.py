"""Command ``esm-host lookup``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import (
    ProviderOptions,
    RuntimeOptions,
    SpaceOptions,
    grouped,
    settings_of,
)
from esm_host.cli.options import TIMING, Device, Json, NoWait, Quiet, Threads, read_contexts
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import print_table
from esm_protos.text import counted


@dataclass(frozen=True)
class TimingOptions:
    """Options of a part's runs."""

    runs: Annotated[
        int | None,
        typer.Option(
            help="Exact number of counted runs per part, regardless of the interval.",
            rich_help_panel=TIMING,
        ),
    ] = None
    precision: Annotated[
        float | None,
        typer.Option(
            help="Half-width of the 95 % confidence interval at which a part is done, in percent "
            "of its latency.",
            show_default="2",
            rich_help_panel=TIMING,
        ),
    ] = None
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Maximum measuring time per block of 22 parts, in seconds.",
            show_default="62",
            rich_help_panel=TIMING,
        ),
    ] = None
    threads: Threads = 1
    timeout: Annotated[
        float,
        typer.Option(
            help="Time limit for one inference, in seconds.",
            rich_help_panel=TIMING,
        ),
    ] = 60.0
    load_timeout: Annotated[
        float,
        typer.Option(
            help="Time limit for loading a part, in seconds.",
            rich_help_panel=TIMING,
        ),
    ] = 600.0


@one_line_errors
@grouped
def lookup(
    device: Device = "local",
    *,
    space: SpaceOptions,
    timing: TimingOptions,
    provider: ProviderOptions,
    runtime: RuntimeOptions,
    no_wait: NoWait = False,
    seed: Annotated[int, typer.Option(help="Random seed of the inputs and the order of runs.")] = 0,
    output: Json = None,
    quiet: Quiet = False,
) -> None:
    """Time every part of a search space on a device, for a lookup table.

    A part is a block or a layer outside the blocks. Equal parts are timed once. The predictor
    lookup-bias adds them up (docs/lookup.md).

    Example: esm-host lookup --device pi4 --space resnet --resolution 64 --json pi4.json
    """
    from esm_host.cli.progress import DeviceLines
    from esm_host.encoding.cost import PartsEncoder
    from esm_host.extension.settings import SpaceSettings
    from esm_host.predictors.lookup_file import table_json
    from esm_host.timing import for_models, timing_spec
    from esm_host.timing.parts import PARTS, time_parts
    from esm_host.transport import devices

    spec = timing_spec(
        timing.runs,
        timing.precision,
        None,
        timing.max_time,
        threads=timing.threads,
        **provider.spec(),
        session=runtime.settings(),
        model_timeout_s=timing.timeout,
        load_timeout_s=timing.load_timeout,
        seed=seed,
    )
    spec = for_models(spec, PARTS, timing.max_time)
    own = [Path(space.space.rpartition(":")[0])] if ":" in space.space else []
    check_output(output, inputs=own)
    given = settings_of(SpaceSettings, space) | {"contexts": read_contexts(space.context)}
    searched = SpaceSettings(**given).search_space()
    parts = PartsEncoder(searched).parts

    def on_block(done: int, total: int) -> None:
        if not quiet:
            typer.echo(f"{done} of {total} parts", err=True)

    with devices.connect(device) as profiler, DeviceLines([device], quiet) as lines:
        profiler.reserve(f"lookup {searched.name}", not no_wait)
        times = time_parts(
            profiler, parts, spec, lambda progress: lines(device, progress), on_block
        )
        info = profiler.device_info()
    if str(output) != "-":
        print_table(
            ("part", "input", "operators", "mflops", "latency_ms", "interval_%"),
            [
                (
                    f"{time.part.name} {time.part.option}".strip(),
                    ", ".join("x".join(map(str, shape)) for shape in time.part.inputs),
                    str(len(time.part.operators)),
                    f"{time.part.flops / 1e6:.2f}",
                    f"{time.latency_ms:.4f}",
                    f"{100 * time.interval:.1f}",
                )
                for time in sorted(times, key=lambda time: -time.latency_ms)
            ],
            right=range(2, 6),
        )
    if output is not None:
        data = table_json(searched, device, info, spec, [time.to_json() for time in times])
        said = f"{counted(len(times), 'part')} written to {output}"
        write_output(output, json.dumps(data, indent=1, allow_nan=False), said)
