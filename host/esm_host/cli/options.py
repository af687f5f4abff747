"""What several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from esm_host import encoding, predictors, sampling, transfer
from esm_host.errors import UsageError
from esm_host.search import methods
from esm_models import spaces
from esm_models.spaces import SPACES

# What a shell completes: nothing that the commands need is loaded for it.

OWN = "path/to/file.py:Class"
DTYPES = ("float32", "int8")
VERDICTS = ("stable", "noisy", "unresolved", "throttled")


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter has a value that somebody gave, and not its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def names_of_devices(incomplete: str) -> list[str]:
    """Devices that have a name."""
    return _beginning(incomplete, _named()[0])


def device_names(incomplete: str) -> list[str]:
    """The same, and this machine."""
    return [*_beginning(incomplete, ["local"]), *names_of_devices(incomplete)]


def names_of_all(incomplete: str) -> list[str]:
    """Devices and groups that have a name."""
    devices, groups = _named()
    return _beginning(incomplete, [*devices, *groups])


def devices_or_groups(incomplete: str) -> list[str]:
    """Devices and groups that have a name, and this machine."""
    return [*_beginning(incomplete, ["local"]), *names_of_all(incomplete)]


def _named() -> tuple[Iterable[str], Iterable[str]]:
    """Devices and groups; neither where the file is wrong, which a command will say."""
    from esm_host.transport.devices import configured, groups

    try:
        return configured(), groups()
    except UsageError:
        return (), ()


def examples(incomplete: str) -> list[str]:
    """Examples of ``esm-host time``."""
    from esm_host.timing.examples import example_names

    return _beginning(incomplete, example_names())


def space_names(incomplete: str) -> list[str]:
    """Search spaces."""
    return _beginning(incomplete, spaces.FAMILY.names())


def encoding_names(incomplete: str) -> list[str]:
    """Encodings of architectures."""
    return _beginning(incomplete, encoding.FAMILY.names())


def sampler_names(incomplete: str) -> list[str]:
    """Samplers of campaigns."""
    return _beginning(incomplete, sampling.FAMILY.names())


def transfer_methods(incomplete: str) -> list[str]:
    """Few-shot methods."""
    return _beginning(incomplete, [*transfer.FAMILY.names(), *transfer.ALIASES])


def transfer_samplers(incomplete: str) -> list[str]:
    """Samplers of the models to learn from."""
    return _beginning(incomplete, transfer.SAMPLERS)


def dtype_names(incomplete: str) -> list[str]:
    """Arithmetics of networks."""
    return _beginning(incomplete, DTYPES)


def predictor_names(incomplete: str) -> list[str]:
    """Latency predictors."""
    return _beginning(incomplete, predictors.FAMILY.names())


def source_names(incomplete: str) -> list[str]:
    """Imported tables."""
    from esm_host.sources.folder import tables

    return _beginning(incomplete, tables())


def search_methods(incomplete: str) -> list[str]:
    """Ways to search."""
    return _beginning(incomplete, methods.FAMILY.names())


def verdict_names(incomplete: str) -> list[str]:
    """Verdicts, of which several are joined by commas."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [before + comma + name for name in _beginning(last, VERDICTS) if name not in given]


Device = Annotated[
    str,
    typer.Option(
        help="'local', host:port, or a name from devices.toml.",
        envvar="ESM_DEVICE",
        autocompletion=device_names,
    ),
]
DeviceOrGroup = Annotated[
    str,
    typer.Option(
        help="'local', host:port, or a name of a device or a group from devices.toml.",
        envvar="ESM_DEVICE",
        autocompletion=devices_or_groups,
    ),
]
SharedStore = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="PostgreSQL database that a team shares: postgresql://USER@HOST/DATABASE.",
        envvar="ESM_STORE",
        show_default=False,
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")]
Parallel = Annotated[
    str | None,
    typer.Option(
        metavar="N|dask://HOST:PORT",
        help="Where to compute: N processes on this machine, or the workers of a Dask cluster "
        "(docs/cluster.md). [default: one process per processor]",
        show_default=False,
    ),
]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Give up (exit code 75) if somebody else uses the device."),
]
Patience = Annotated[float, typer.Option(help="Seconds to wait for a device that went away.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]

_SPACE = "Search space"

Space = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(SPACES)}, or {OWN}.",
        autocompletion=space_names,
        rich_help_panel=_SPACE,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        help="Input side, pixels. [default: 32 of nasbench201 and fbnet, free in ofa, else 224]",
        rich_help_panel=_SPACE,
    ),
]
WidthMult = Annotated[
    float, typer.Option(help="Multiplier of channel counts.", rich_help_panel=_SPACE)
]
Batch = Annotated[int, typer.Option(help="Batch size.", rich_help_panel=_SPACE)]
Dtype = Annotated[
    str,
    typer.Option(
        help="Arithmetic of the networks: float32 or int8.",
        autocompletion=dtype_names,
        rich_help_panel=_SPACE,
    ),
]

TIMING = "Timing"

Precision = Annotated[
    float,
    typer.Option(
        help="Measure until every model's 95 % interval is within this percent.",
        rich_help_panel=TIMING,
    ),
]
AsMeasured = Annotated[
    bool,
    typer.Option(
        "--raw/--no-raw",
        help="Report latencies as measured, not at the device's usual pace.",
        rich_help_panel=TIMING,
    ),
]
MaxRuns = Annotated[
    int, typer.Option(help="Counted runs per model at most.", rich_help_panel=TIMING)
]
Threads = Annotated[int, typer.Option(help="Threads of the runtime.", rich_help_panel=TIMING)]
_EP = "Execution provider"

Ep = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Execution provider, such as cpu; esm-host devices info lists a device's.",
        rich_help_panel=_EP,
    ),
]
EpOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ep-option",
        metavar="NAME=VALUE",
        help="Option of the execution provider, as esm-host devices info lists them; may be "
        "repeated.",
        rich_help_panel=_EP,
    ),
]

Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Deprecated: --ep-option tf32=1.",
        rich_help_panel=_EP,
    ),
]
CudaGraph = Annotated[
    bool,
    typer.Option(
        "--cuda-graph",
        help="Deprecated: --ep-option cuda_graph=1.",
        rich_help_panel=_EP,
    ),
]
AllowFallback = Annotated[
    bool,
    typer.Option(
        "--allow-fallback",
        help="Measure also models of which nodes run on another provider.",
        rich_help_panel=_EP,
    ),
]


def as_share(option: str, percent: float) -> float:
    """An option's percent as a share; raises UsageError unless above 0 and below 100."""
    if not 0 < percent < 100:
        raise UsageError(f"{option} {percent:g}: give percent, above 0 and below 100")
    return percent / 100


def computing(where: str | None) -> AbstractContextManager[None]:
    """Within it, tasks are computed where ``--parallel`` says."""
    from esm_host.parallel import parallel

    return parallel(where, lambda text: typer.echo(f"warning: {text}", err=True))
