"""Options and shell completions shared by several commands."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from esm_host import encoding, predictors, sampling, transfer
from esm_host.errors import UsageError
from esm_host.search import methods
from esm_models import spaces
from esm_models.spaces import SPACES

# Completions run at every press of Tab: they import nothing heavy at module level.

OWN = "path/to/file.py:Class"
DTYPES = ("float32", "int8")
VERDICTS = ("stable", "noisy", "unresolved", "throttled")
METRICS = ("latency", "energy", "peak_memory")


def was_given(ctx: typer.Context, name: str) -> bool:
    """Return whether the user set a parameter, on the command line or by environment variable."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _with_prefix(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def names_of_devices(incomplete: str) -> list[str]:
    """Complete names of devices."""
    return _with_prefix(incomplete, _configured_names()[0])


def device_names(incomplete: str) -> list[str]:
    """Complete names of devices, including 'local'."""
    return [*_with_prefix(incomplete, ["local"]), *names_of_devices(incomplete)]


def names_of_all(incomplete: str) -> list[str]:
    """Complete names of devices and groups."""
    devices, groups = _configured_names()
    return _with_prefix(incomplete, [*devices, *groups])


def devices_or_groups(incomplete: str) -> list[str]:
    """Complete names of devices and groups, including 'local'."""
    return [*_with_prefix(incomplete, ["local"]), *names_of_all(incomplete)]


def _configured_names() -> tuple[Iterable[str], Iterable[str]]:
    """Return the names of devices and groups; none if devices.toml is invalid."""
    from esm_host.transport.devices import configured, groups

    try:
        return configured(), groups()
    except UsageError:
        return (), ()


def examples(incomplete: str) -> list[str]:
    """Complete example models of ``esm-host time``."""
    from esm_host.timing.examples import example_names

    return _with_prefix(incomplete, example_names())


def space_names(incomplete: str) -> list[str]:
    """Complete search spaces."""
    return _with_prefix(incomplete, spaces.FAMILY.names())


def encoding_names(incomplete: str) -> list[str]:
    """Complete encodings of architectures."""
    return _with_prefix(incomplete, encoding.FAMILY.names())


def sampler_names(incomplete: str) -> list[str]:
    """Complete samplers of campaigns."""
    return _with_prefix(incomplete, sampling.FAMILY.names())


def transfer_methods(incomplete: str) -> list[str]:
    """Complete transfer methods."""
    return _with_prefix(incomplete, [*transfer.FAMILY.names(), *transfer.ALIASES])


def transfer_samplers(incomplete: str) -> list[str]:
    """Complete samplers of ``esm-host transfer``."""
    return _with_prefix(incomplete, transfer.SAMPLERS)


def dtype_names(incomplete: str) -> list[str]:
    """Complete data types of networks."""
    return _with_prefix(incomplete, DTYPES)


def predictor_names(incomplete: str) -> list[str]:
    """Complete latency predictors."""
    return _with_prefix(incomplete, predictors.FAMILY.names())


def source_names(incomplete: str) -> list[str]:
    """Complete imported tables."""
    from esm_host.sources.folder import tables

    return _with_prefix(incomplete, tables())


def search_methods(incomplete: str) -> list[str]:
    """Complete search methods."""
    return _with_prefix(incomplete, methods.FAMILY.names())


def metric_names(incomplete: str) -> list[str]:
    """Complete the last metric of a comma-separated list."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [before + comma + name for name in _with_prefix(last, METRICS) if name not in given]


def verdict_names(incomplete: str) -> list[str]:
    """Complete the last verdict of a comma-separated list."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [before + comma + name for name in _with_prefix(last, VERDICTS) if name not in given]


Device = Annotated[
    str,
    typer.Option(
        help="Device: 'local', host:port, or a name from devices.toml.",
        envvar="ESM_DEVICE",
        autocompletion=device_names,
    ),
]
DeviceOrGroup = Annotated[
    str,
    typer.Option(
        help="Device or group: 'local', host:port, or a name from devices.toml.",
        envvar="ESM_DEVICE",
        autocompletion=devices_or_groups,
    ),
]
SharedStore = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="PostgreSQL database shared by a team: postgresql://USER@HOST/DATABASE.",
        envvar="ESM_STORE",
        show_default=False,
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")]
Parallel = Annotated[
    str | None,
    typer.Option(
        metavar="N|dask://HOST:PORT",
        help="Number of worker processes on this machine, or address of a Dask cluster "
        "(docs/cluster.md). [default: one process per processor]",
        show_default=False,
    ),
]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Exit with code 75 if another user holds the device."),
]
Patience = Annotated[
    float, typer.Option(help="Time to wait for an unreachable device, in seconds.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]

_SPACE = "Search space"

Space = Annotated[
    str,
    typer.Option(
        help=f"Search space: {', '.join(SPACES)}, or {OWN}.",
        autocompletion=space_names,
        rich_help_panel=_SPACE,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        help="Height and width of the input, in pixels; tokens for hat. [default: that of the "
        "space]",
        rich_help_panel=_SPACE,
    ),
]
WidthMult = Annotated[
    float, typer.Option(help="Multiplier of the channel counts.", rich_help_panel=_SPACE)
]
Batch = Annotated[int, typer.Option(help="Batch size.", rich_help_panel=_SPACE)]
Dtype = Annotated[
    str,
    typer.Option(
        help="Data type of the networks: float32 or int8.",
        autocompletion=dtype_names,
        rich_help_panel=_SPACE,
    ),
]

Contexts = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        metavar="NAME=VALUE,VALUE,...",
        help="Context that networks are measured in, and its values: past=128,512 for the cache of "
        "a language model, batch=1,4 or resolution=160,224. Each network is drawn with one. May be "
        "repeated. [default: those of the search space]",
        rich_help_panel=_SPACE,
        show_default=False,
    ),
]
InContext = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        metavar="NAME=VALUE",
        help="Context of the networks, such as past=1500, which need not have been measured. May "
        "be repeated.",
    ),
]

TIMING = "Timing"

Precision = Annotated[
    float,
    typer.Option(
        help="Half-width of the 95 % confidence interval at which a model is done, in percent of "
        "its latency.",
        rich_help_panel=TIMING,
    ),
]
AsMeasured = Annotated[
    bool,
    typer.Option(
        "--raw/--no-raw",
        help="Report latencies as measured, without correction to the device's usual pace (its "
        "typical speed in earlier measurements).",
        rich_help_panel=TIMING,
    ),
]
CampaignMetrics = Annotated[
    str,
    typer.Option(
        help="Metrics to learn, separated by commas: latency, energy (needs a sensor), "
        "peak_memory. The first one leads: it decides what is measured and when the campaign ends.",
        autocompletion=metric_names,
    ),
]
EnergyTime = Annotated[
    float,
    typer.Option(
        help="Time per model for its energy, in seconds. The device is idle for half of it.",
        min=1,
        max=86_400,
        rich_help_panel=TIMING,
    ),
]
MaxRuns = Annotated[
    int, typer.Option(help="Maximum number of counted runs per model.", rich_help_panel=TIMING)
]
Threads = Annotated[
    int, typer.Option(help="Number of threads of ONNX Runtime.", rich_help_panel=TIMING)
]
_EP = "Execution provider"

Ep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Execution provider, such as cpu. List the device's providers with esm-host devices "
        "info. esm-host time takes several, such as cpu,openvino.",
        show_default="cpu",
        rich_help_panel=_EP,
    ),
]
EpOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ep-option",
        metavar="[NAME:]KEY=VALUE",
        help="Option of the execution provider, with the provider's name if there are several. "
        "List them with esm-host devices info. May be repeated.",
        rich_help_panel=_EP,
    ),
]

Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Deprecated: use --ep-option tf32=1.",
        rich_help_panel=_EP,
    ),
]
CudaGraph = Annotated[
    bool,
    typer.Option(
        "--cuda-graph",
        help="Deprecated: use --ep-option cuda_graph=1.",
        rich_help_panel=_EP,
    ),
]
AllowFallback = Annotated[
    bool,
    typer.Option(
        "--allow-fallback",
        help="Also measure models with nodes that fall back to another provider.",
        rich_help_panel=_EP,
    ),
]

_SESSION = "ONNX Runtime session"

OptLevel = Annotated[
    str,
    typer.Option(
        metavar="LEVEL",
        help="Level of graph optimization: disable, basic, extended, layout or all.",
        rich_help_panel=_SESSION,
    ),
]
ExecutionMode = Annotated[
    str,
    typer.Option(
        metavar="MODE",
        help="Execution of independent nodes: sequential, or parallel.",
        rich_help_panel=_SESSION,
    ),
]
InterOp = Annotated[
    int | None,
    typer.Option(
        help="Number of inter-op threads: nodes that run at the same time. Needs --execution-mode "
        "parallel.",
        show_default="processors of the device",
        rich_help_panel=_SESSION,
    ),
]
SessionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--session-option",
        metavar="KEY=VALUE",
        help="Config entry of SessionOptions, such as session.intra_op.allow_spinning=0. May be "
        "repeated.",
        rich_help_panel=_SESSION,
    ),
]
FreeDim = Annotated[
    list[str] | None,
    typer.Option(
        "--free-dim",
        metavar="NAME=SIZE",
        help="Override of a free dimension by name: its size is fixed before the graph is "
        "optimized. May be repeated.",
        rich_help_panel=_SESSION,
    ),
]


def read_contexts(texts: Iterable[str] | None) -> dict[str, tuple[int | str, ...]]:
    """Return the values of ``--context`` by name; what is no number is left to the search space.

    Raises:
        UsageError: a text has no name or no ``=``.
    """
    found: dict[str, tuple[int | str, ...]] = {}
    for text in texts or ():
        name, sign, values = (part.strip() for part in text.partition("="))
        if not name or not sign:
            raise UsageError(f"--context '{text}': give NAME=VALUE, such as past=512")
        parts = [part.strip() for part in values.split(",")]
        numbers = tuple(int(part) if part.isdecimal() else part for part in parts)
        found[name] = (*found.get(name, ()), *numbers)
    return found


def read_context(texts: Iterable[str] | None) -> dict[str, Any]:
    """Return the value of each ``--context``, as :func:`read_contexts`.

    Raises:
        UsageError: as there, or a context has several values.
    """
    found = read_contexts(texts)
    for name, values in found.items():
        if len(values) > 1:
            shown = ",".join(map(str, values))
            raise UsageError(f"--context {name}={shown}: give one value")
    return {name: value for name, (value,) in found.items()}


def as_share(option: str, percent: float) -> float:
    """Return a percentage as a share.

    Raises:
        UsageError: it is not above 0 and below 100.
    """
    if not 0 < percent < 100:
        raise UsageError(f"{option} {percent:g}: give a percentage above 0 and below 100")
    return percent / 100


def computing(where: str | None) -> AbstractContextManager[None]:
    """Return a context in which tasks run where ``--parallel`` says."""
    from esm_host.parallel import parallel

    return parallel(where, lambda text: typer.echo(f"warning: {text}", err=True))
