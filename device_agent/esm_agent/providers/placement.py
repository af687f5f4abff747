"""Where the nodes of a model ran, as the runtime's own profile of a run tells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from esm_agent.measure import profiling
from esm_agent.measure.feeds import Feed

_SHOWN_NODES = 5
_SMALL_TENSOR = 100
"""Numbers: what the runtime itself takes for a shape when it moves its arithmetic to the CPU."""


class Placement(NamedTuple):
    """Where the nodes of a model ran, what came out, and of what."""

    ran_on: tuple[tuple[str, int], ...]
    fallback: tuple[str, ...]
    outputs: list[Any]
    feed: Feed


def nodes_by_provider(
    events: Iterable[dict[str, Any]], own: Collection[str]
) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Return nodes per provider, and the names of those that fell back, from a run's profile.

    Copies that the runtime put between providers are no nodes of the model. Arithmetic on shapes
    is one, but no fallback: the runtime keeps it on the CPU on purpose, where a size is needed.

    Args:
        own: the runtime's providers on which a node is no fallback.
    """
    nodes = {}
    for event in events:
        if not profiling.is_node(event):
            continue
        arguments = event["args"]
        if not arguments["op_name"].startswith("Memcpy"):
            name = event["name"].removesuffix("_kernel_time")
            nodes[name, arguments.get("node_index")] = arguments  # loops run theirs repeatedly
    counts = Counter(arguments["provider"] for arguments in nodes.values())
    fallback = tuple(
        name
        for (name, _), arguments in nodes.items()
        if arguments["provider"] not in own and not _is_about_shapes(arguments)
    )
    return tuple(counts.most_common()), fallback


def _is_about_shapes(arguments: dict[str, Any]) -> bool:
    """Few whole numbers in, few whole numbers out."""
    outputs = arguments.get("output_type_shape", [])
    tensors = [*arguments.get("input_type_shape", []), *outputs]
    return bool(outputs) and all(
        kind in ("int64", "int32", "bool") and math.prod(shape) <= _SMALL_TENSOR
        for tensor in tensors
        for kind, shape in tensor.items()
    )


def called(runtime_name: str) -> str:
    """Return what people call one of the runtime's providers."""
    return runtime_name.removesuffix("ExecutionProvider")


def refusal(placement: Placement, runtime_name: str) -> str:
    """Return why a model is not timed of which nodes fell back."""
    names = ", ".join(placement.fallback[:_SHOWN_NODES])
    more = len(placement.fallback) - _SHOWN_NODES
    total = sum(count for _, count in placement.ran_on)
    return (
        f"{len(placement.fallback)} of {total} nodes did not run on {called(runtime_name)}: {names}"
        f"{f' and {more} more' if more > 0 else ''}; --allow-fallback measures the model as it is"
    )
