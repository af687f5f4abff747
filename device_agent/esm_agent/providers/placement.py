"""Placement of a model's nodes on providers, from the runtime's profile of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from esm_agent.measure import profiling
from esm_agent.measure.feeds import Feed

_SHOWN_NODES = 5
_SMALL_TENSOR = 100
"""Largest number of elements that the runtime treats as a shape and computes on the CPU."""


class Placement(NamedTuple):
    """Placement of the nodes of a model in one run, with its outputs and inputs.

    Attributes:
        ran_on: Number of nodes on each provider.
        fallback: Names of nodes on another provider than the requested one.
        outputs: Outputs of the run, as runtime values.
        feed: Inputs of the run.
    """

    ran_on: tuple[tuple[str, int], ...]
    fallback: tuple[str, ...]
    outputs: list[Any]
    feed: Feed


def nodes_by_provider(
    events: Iterable[dict[str, Any]], own: Collection[str]
) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Return the number of nodes per provider, and the names of nodes that fell back.

    Copies that the runtime inserts between providers do not count as nodes. Arithmetic on shapes
    counts as a node but not as fallback: the runtime deliberately keeps it on the CPU.

    Args:
        events: Events of the run's profile.
        own: Providers of the runtime on which a node does not count as fallback.
    """
    nodes = {}
    for event in events:
        if not profiling.is_node(event):
            continue
        arguments = event["args"]
        if not arguments["op_name"].startswith("Memcpy"):
            name = event["name"].removesuffix("_kernel_time")
            nodes[name, arguments.get("node_index")] = arguments  # loops repeat their nodes
    counts = Counter(arguments["provider"] for arguments in nodes.values())
    fallback = tuple(
        name
        for (name, _), arguments in nodes.items()
        if arguments["provider"] not in own and not _is_about_shapes(arguments)
    )
    return tuple(counts.most_common()), fallback


def _is_about_shapes(arguments: dict[str, Any]) -> bool:
    """Return whether a node computes shapes: few integers in, few integers out."""
    outputs = arguments.get("output_type_shape", [])
    tensors = [*arguments.get("input_type_shape", []), *outputs]
    return bool(outputs) and all(
        kind in ("int64", "int32", "bool") and math.prod(shape) <= _SMALL_TENSOR
        for tensor in tensors
        for kind, shape in tensor.items()
    )


def called(runtime_name: str) -> str:
    """Return the short name of one of the runtime's providers."""
    return runtime_name.removesuffix("ExecutionProvider")


def refusal(placement: Placement, runtime_name: str) -> str:
    """Return the message that refuses a model with fallback nodes."""
    names = ", ".join(placement.fallback[:_SHOWN_NODES])
    more = len(placement.fallback) - _SHOWN_NODES
    total = sum(count for _, count in placement.ran_on)
    return (
        f"{len(placement.fallback)} of {total} nodes did not run on {called(runtime_name)}: {names}"
        f"{f' and {more} more' if more > 0 else ''}; allow fallback to measure the model anyway"
    )
