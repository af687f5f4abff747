"""Profile of an inference, from the runtime's own profiler.

The profiler writes one event per line, with its start ``ts`` and its duration ``dur`` in whole
microseconds. Bodies of If, Loop and Scan run within the event of their node, and have events too.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from esm_agent.measure.outcomes import ModelError
from esm_protos.messages import FailureKind, NodeTime, OperatorTime, Profile

_KERNEL = "_kernel_time"
_MOST_NODES = 500
_LONGEST_NAME = 200
_WARM_S, _LONGEST_S = 0.025, 30.0


class Node(NamedTuple):
    """Node of an event. Nodes of two bodies may have the same number."""

    name: str
    number: str
    op_type: str
    provider: str


class Span(NamedTuple):
    """One execution of a node, microseconds."""

    begin: int
    duration: int
    node: Node


@contextmanager
def folder() -> Iterator[str]:
    """Yield a prefix for profiles, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as path:
        yield str(Path(path) / "profile")


def enable(options: Any, prefix: str) -> None:
    """Set session options so that sessions write a profile under the prefix."""
    options.enable_profiling = True
    options.profile_file_prefix = prefix


def events(session: Any) -> list[dict[str, Any]]:
    """End a session's profiling and return its events.

    Raises:
        ModelError: the profile cannot be read.
    """
    path = session.end_profiling()
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            lines = (line.strip().removesuffix(",") for line in file)
            return [json.loads(line, strict=False) for line in lines if line not in ("", "[", "]")]
    except (OSError, ValueError) as error:
        text = f"the runtime's profile cannot be read from {path} ({error})"
        raise ModelError(FailureKind.CRASH, text) from error


def is_node(event: dict[str, Any]) -> bool:
    """Return whether an event is the execution of a node."""
    arguments = event.get("args", {})
    return event.get("cat") == "Node" and "provider" in arguments and "op_name" in arguments


def profile(
    session: Any,
    run: Callable[[], object],
    warmup: int,
    runs: int,
    between: Callable[[float], None],
) -> Profile:
    """Return the profile of ``runs`` runs after ``warmup`` uncounted ones.

    Slow models have fewer of both, at least one: the warm-up ends after 25 ms, and the profile
    after 30 s.

    Args:
        session: Session with profiling enabled.
        run: Function that runs an inference.
        warmup: Number of uncounted runs.
        runs: Number of counted runs.
        between: Function called before each run with the share of counted runs done.

    Raises:
        ModelError: the runtime's profile is unusable.
    """
    began, uncounted = time.monotonic(), 0
    while not uncounted or (uncounted < warmup and time.monotonic() - began < _WARM_S):
        between(0.0)
        run()
        uncounted += 1
    for number in range(runs):
        if number and time.monotonic() - began > _LONGEST_S:
            break
        between(number / runs)
        run()
    return summary(events(session), uncounted)


def summary(found: Iterable[dict[str, Any]], warmup: int = 0) -> Profile:
    """Return the time per inference by operator and by node, after ``warmup`` inferences.

    The time of a node with a body excludes that of the body's nodes, which are counted themselves.

    Raises:
        ModelError: there is no whole inference; the runtime keeps at most a million events.
    """
    found = list(found)
    counted = sorted((e["ts"], e["dur"]) for e in found if e.get("name") == "model_run")[warmup:]
    if not counted:
        raise ModelError(FailureKind.CRASH, "the runtime's profile has no whole inference")
    begin, end = counted[0][0], counted[-1][0] + counted[-1][1]
    spans = [
        Span(event["ts"], event["dur"], _node(event))
        for event in found
        if is_node(event) and begin <= event["ts"] <= end
    ]
    own_us: dict[Node, int] = defaultdict(int)
    calls: dict[Node, int] = defaultdict(int)
    for span, inside_us in _nested(spans):
        own_us[span.node] += max(span.duration - inside_us, 0)
        calls[span.node] += 1
    runs = len(counted)
    by_operator: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in own_us:
        by_operator[node.op_type, node.provider].append(node)
    operators = [
        OperatorTime(
            *key,
            calls=round(sum(calls[node] for node in nodes) / runs),
            ns=sum(own_us[node] for node in nodes) * 1000 / runs,
        )
        for key, nodes in by_operator.items()
    ]
    times = [
        NodeTime(node.name[:_LONGEST_NAME], node.op_type, node.provider, us * 1000 / runs)
        for node, us in own_us.items()
    ]
    return Profile(runs, _slowest(operators), _slowest(times)[:_MOST_NODES])


def _slowest(times: list[Any]) -> tuple[Any, ...]:
    return tuple(sorted(times, key=lambda time: -time.ns))


def _node(event: dict[str, Any]) -> Node:
    arguments = event["args"]
    name = event["name"].removesuffix(_KERNEL)
    number = str(arguments.get("node_index", ""))
    return Node(name, number, arguments["op_name"], arguments["provider"])


_BODIES = frozenset({"If", "Loop", "Scan"})


def _nested(spans: Iterable[Span]) -> Iterator[tuple[Span, int]]:
    """Yield every span with the total duration of the spans directly within it, microseconds."""
    around: list[tuple[Span, list[int]]] = []

    def is_in(span: Span, outer: Span) -> bool:
        return outer.node.op_type in _BODIES and span.begin < outer.begin + outer.duration

    # The outer span first, if spans begin together.
    for span in sorted(spans, key=lambda s: (s.begin, -s.duration, s.node.op_type not in _BODIES)):
        while around and not is_in(span, around[-1][0]):
            outer, inside = around.pop()
            yield outer, sum(inside)
        if around:
            around[-1][1].append(span.duration)
        around.append((span, []))
    while around:
        outer, inside = around.pop()
        yield outer, sum(inside)
