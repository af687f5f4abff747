"""Settings of ONNX Runtime's sessions, besides the threads within an operator."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

from esm_protos.nearest import unknown

OPT_LEVELS = ("disable", "basic", "extended", "layout", "all")
"""Levels of graph optimization, each with those before it."""
EXECUTION_MODES = ("sequential", "parallel")

_MOST_THREADS = 1024
_MOST_ENTRIES = 1000
_MOST_DIM = 2**31 - 1
_NAME = re.compile(r"[\w.:-]{1,200}", re.ASCII)
_LONGEST_VALUE = 1000
_FILES = re.compile(
    r"file|path|folder|librar|custom_op|context|compile|format|profil|debug|dump|memory_optimizer"
    r"|resource_cuda_partitioning|\.log_"
)
"""Entries whose value names a file or code, or that read or write files."""
_OWN = {
    "session.graph_optimization_level": "opt_level",
    "session.execution_mode": "execution_mode",
    "session.inter_op_num_threads": "inter_op",
    "session.intra_op_num_threads": "threads",
}
"""Entries that a setting replaces, with its name."""
RECORD = "session.record_ep_graph_assignment_info"
"""Entry that the agent sets to ``1`` to read the provider of each node.

Since onnxruntime 1.24; older versions ignore it.
"""


@dataclass(frozen=True)
class SessionSettings:
    """Settings of ONNX Runtime's sessions. The defaults are those of all earlier versions.

    Attributes:
        opt_level: Level of graph optimization, one of :data:`OPT_LEVELS`.
        execution_mode: ``"sequential"``, or ``"parallel"`` to run independent nodes at a time.
        inter_op: Number of nodes that run at a time, with ``"parallel"`` only; 0: as many as the
            device has processors.
        session_options: Config entries of the runtime's ``SessionOptions``, by name.
        free_dims: Sizes of named dimensions that are fixed before the graph is optimized.

    Raises:
        ValueError: a value is out of range, or settings exclude each other.
    """

    opt_level: str = "all"
    execution_mode: str = "sequential"
    inter_op: int = 0
    session_options: Mapping[str, str] = field(default_factory=dict, hash=False)
    free_dims: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, known in (("opt_level", OPT_LEVELS), ("execution_mode", EXECUTION_MODES)):
            value = getattr(self, name)
            if value not in known:
                text = unknown("value", str(value), known)
                raise ValueError(f"{name}: {text}")
        if not isinstance(self.inter_op, Integral) or isinstance(self.inter_op, bool):
            raise ValueError(f"inter_op {self.inter_op!r}: give a whole number")
        if not 0 <= self.inter_op <= _MOST_THREADS:
            raise ValueError(f"inter_op {self.inter_op} is outside 0 to {_MOST_THREADS}")
        if self.inter_op and self.execution_mode == "sequential":
            raise ValueError(
                f"inter_op {self.inter_op} has no effect with sequential execution: use the "
                "execution mode parallel, or leave it out"
            )
        for name, kind in (("session_options", str), ("free_dims", int)):
            given = getattr(self, name)
            if not isinstance(given, Mapping) or not all(
                isinstance(key, str) and isinstance(value, kind) and not isinstance(value, bool)
                for key, value in given.items()
            ):
                what = "texts" if kind is str else "whole numbers"
                raise ValueError(f"{name} {given!r}: give a dictionary of {what}")
            if len(given) > _MOST_ENTRIES:
                raise ValueError(f"{len(given)} {name}: {_MOST_ENTRIES} at most")
            object.__setattr__(self, name, dict(sorted(given.items())))
        for symbol, size in self.free_dims.items():
            if not symbol or not 0 < size <= _MOST_DIM:
                raise ValueError(
                    f"free_dims {symbol}={size}: give NAME=SIZE, a whole number from 1 to "
                    f"{_MOST_DIM}"
                )

    @property
    def key(self) -> tuple[object, ...]:
        """All values, hashable."""
        values = (getattr(self, each.name) for each in fields(self))
        return tuple(tuple(v.items()) if isinstance(v, Mapping) else v for v in values)

    def changes(self) -> dict[str, str]:
        """Return the values that are not as by default, as texts by name."""
        found: dict[str, str] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "free_dims":
                found |= {f"free_dim {name}": str(size) for name, size in value.items()}
            elif isinstance(value, Mapping):
                found |= value
            elif value != each.default:
                found[each.name] = str(value)
        return found

    def refusal(self, argument: Callable[[str], str] = str) -> str:
        """Return why a device refuses a config entry, with the remedy; empty if it does not.

        A device refuses entries by which the runtime reads or writes files, or loads code.

        Args:
            argument: Function that renders the name of an argument.
        """
        for name, value in self.session_options.items():
            if not _NAME.fullmatch(name) or not 0 < len(value) <= _LONGEST_VALUE:
                return f"{name}={value}: give NAME=VALUE, such as session.set_denormal_as_zero=1"
            if name == RECORD:
                return f"{name}={value}: the agent sets it, leave it out"
            if name in _OWN:
                return f"{name}={value}: {argument(_OWN[name])} sets it, leave it out"
            if _FILES.search(name) or any(mark in value for mark in "/\\"):
                return (
                    f"{name}={value}: entries that name files, write files or load code are "
                    "refused, leave it out"
                )
        return ""

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> tuple[SessionSettings, dict[str, Any]]:
        """Return the settings in the JSON of a spec, and the spec's other values.

        Raises:
            ValueError: a value is out of range.
        """
        names = [each.name for each in fields(cls)]
        own = {name: value for name, value in spec.items() if name in names}
        return cls(**own), {name: value for name, value in spec.items() if name not in names}
