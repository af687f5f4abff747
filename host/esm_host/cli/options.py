"""What several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from esm_host.errors import UsageError

Device = Annotated[
    str,
    typer.Option(help="'local', host:port, or a name from devices.toml.", envvar="ESM_DEVICE"),
]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Give up (exit code 75) if somebody else uses the device."),
]

_GPU = "GPU"

Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Let tensor cores round float32 to 19 bits (needs --ep cuda).",
        rich_help_panel=_GPU,
    ),
]
CudaGraph = Annotated[
    bool,
    typer.Option(
        "--cuda-graph",
        help="Record an inference's launches once and replay them (needs --ep cuda).",
        rich_help_panel=_GPU,
    ),
]
AllowFallback = Annotated[
    bool,
    typer.Option(
        "--allow-fallback",
        help="Measure also models of which nodes run on the CPU (needs --ep cuda).",
        rich_help_panel=_GPU,
    ),
]


def check_gpu_options(ep: str, tf32: bool, cuda_graph: bool, allow_fallback: bool) -> None:
    """Raises UsageError where an option would change nothing."""
    given = {"--tf32": tf32, "--cuda-graph": cuda_graph, "--allow-fallback": allow_fallback}
    for option, value in given.items():
        if value and ep != "cuda":
            raise UsageError(f"{option} needs --ep cuda")


def printable(text: str) -> str:
    """Without what would move a terminal's cursor: the text is others'."""
    return "".join(c if c.isprintable() else "?" for c in text)
