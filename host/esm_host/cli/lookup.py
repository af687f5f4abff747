"""``esm-host lookup``: how long each part of a search space takes on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import (
    TIMING,
    AllowFallback,
    Batch,
    CudaGraph,
    Device,
    Dtype,
    Ep,
    EpOption,
    Json,
    NoWait,
    Quiet,
    Resolution,
    Space,
    Tf32,
    Threads,
    WidthMult,
)
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import print_table


@one_line_errors
def lookup(
    device: Device = "local",
    space: Space = "resnet",
    resolution: Resolution = None,
    width_mult: WidthMult = 1.0,
    batch: Batch = 1,
    dtype: Dtype = "float32",
    runs: Annotated[
        int | None,
        typer.Option(
            help="Exactly so many counted runs per part, however precise.", rich_help_panel=TIMING
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            help="Percent of the latency: a part is done when its 95 % interval is within plus or "
            "minus so much.",
            show_default="2",
            rich_help_panel=TIMING,
        ),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Seconds of measuring at most, for 22 parts together.",
            show_default="62",
            rich_help_panel=TIMING,
        ),
    ] = None,
    threads: Threads = 1,
    ep: Ep = "cpu",
    ep_option: EpOption = None,
    tf32: Tf32 = False,
    cuda_graph: CudaGraph = False,
    allow_fallback: AllowFallback = False,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds that one part may take at a time.", rich_help_panel=TIMING),
    ] = 60.0,
    no_wait: NoWait = False,
    seed: Annotated[int, typer.Option(help="Of the inputs and the visiting order.")] = 0,
    output: Json = None,
    quiet: Quiet = False,
) -> None:
    """Time every part of a search space on a device, for a lookup table.

    A part is a block, or what stands before, between and after the blocks; parts that do the same
    work are timed once. The predictor lookup-bias adds them up (docs/lookup.md).

    Example: esm-host lookup --device pi4 --space resnet --resolution 64 --json pi4.json
    """
    from esm_host.cli.progress import DeviceLines
    from esm_host.encoding.cost import PartsEncoder
    from esm_host.extension.settings import Settings
    from esm_host.predictors.lookup_file import table_json
    from esm_host.timing import for_models, timing_spec
    from esm_host.timing.parts import PARTS, time_parts
    from esm_host.timing.provider_options import given_options
    from esm_host.transport import devices

    spec = timing_spec(
        runs,
        precision,
        None,
        max_time,
        threads=threads,
        provider=ep,
        provider_options=given_options(ep_option or (), ep, tf32=tf32, cuda_graph=cuda_graph),
        allow_fallback=allow_fallback,
        model_timeout_s=timeout,
        seed=seed,
    )
    spec = for_models(spec, PARTS, max_time)
    check_output(output, inputs=[Path(space.rpartition(":")[0])] if ":" in space else [])
    searched = Settings(
        device, space, resolution=resolution, width_mult=width_mult, batch=batch, dtype=dtype
    ).search_space()
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
        said = f"{len(times)} parts are in {output}"
        write_output(output, json.dumps(data, indent=1, allow_nan=False), said)
