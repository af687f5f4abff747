"""Settings of ONNX Runtime's sessions, as users give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_protos.nearest import unknown
from esm_protos.session_settings import EXECUTION_MODES, OPT_LEVELS, SessionSettings


def session_settings(
    opt_level: str = "all",
    execution_mode: str = "sequential",
    inter_op: int | None = None,
    session_options: Iterable[str] | Mapping[str, object] = (),
    free_dims: Iterable[str] | Mapping[str, int] = (),
) -> SessionSettings:
    """Return the settings.

    Args:
        opt_level: Level of graph optimization.
        execution_mode: Order of independent nodes.
        inter_op: Number of nodes that run at a time; None: the device's number of processors.
        session_options: ``"KEY=VALUE"``, or values by key; True is ``1`` and False is ``0``.
        free_dims: ``"NAME=SIZE"``, or sizes by name.

    Raises:
        UsageError: a value is invalid, has no effect or is given twice.
    """
    given = {
        "opt_level": (opt_level, OPT_LEVELS),
        "execution_mode": (execution_mode, EXECUTION_MODES),
    }
    for name, (value, known) in given.items():
        if value not in known:
            raise UsageError(f"{argument(name)}: {unknown('value', value, known)}")
    if inter_op is not None and execution_mode != "parallel":
        raise UsageError(
            f"{argument('inter_op')} {inter_op} needs {argument('execution_mode')} parallel: ONNX "
            "Runtime ignores it otherwise"
        )
    if inter_op is not None and inter_op < 1:
        raise UsageError(f"{argument('inter_op')} {inter_op}: give a number from 1")
    entries = _pairs("session_options", session_options, "KEY=VALUE")
    dims = {}
    for name, size in _pairs("free_dims", free_dims, "NAME=SIZE").items():
        if not (size.isascii() and size.isdecimal()):
            raise UsageError(
                f"{argument('free_dims')} {name}={size}: give NAME=SIZE, a whole number from 1"
            )
        dims[name] = int(size)
    try:
        found = SessionSettings(opt_level, execution_mode, inter_op or 0, entries, dims)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise UsageError(f"{argument(name)} {rest}") from error
    if reason := found.refusal(argument):
        raise UsageError(f"{argument('session_options')} {reason}")
    return found


def _pairs(name: str, given: Iterable[str] | Mapping[str, object], form: str) -> dict[str, str]:
    if isinstance(given, Mapping):
        return {
            key: str(int(value)) if isinstance(value, bool) else str(value)
            for key, value in given.items()
        }
    found: dict[str, str] = {}
    for text in given:
        key, _, value = text.partition("=") if form.startswith("KEY") else text.rpartition("=")
        if not (key and value):
            raise UsageError(f"{argument(name)} {text}: give {form}")
        if key in found:
            raise UsageError(f"{argument(name)} {text}: {key} is given twice")
        found[key] = value
    return found
