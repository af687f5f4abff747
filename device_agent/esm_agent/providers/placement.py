"""Placement of a model's nodes on providers: the runtime's assignment, or its profile of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from esm_agent.measure import profiling

_SHOWN_NODES = 5
_SMALL_TENSOR = 100
"""Largest number of elements that the runtime treats as a shape and computes on the CPU."""


class PlacedNode(NamedTuple):
    """Node of a model on a provider of the runtime; the name may be empty."""

    name: str
    op_type: str
    provider: str

    @property
    def label(self) -> str:
        """The name, or the operator of a node without one."""
        return self.name or self.op_type

    def __str__(self) -> str:
        return f"{self.name} ({self.op_type})" if self.name else self.op_type


class Placement(NamedTuple):
    """Placement of the nodes of a model.

    Attributes:
        ran_on: Number of nodes on each provider, most first.
        fallback: Nodes on another provider than the requested one.
    """

    ran_on: tuple[tuple[str, int], ...] = ()
    fallback: tuple[PlacedNode, ...] = ()

    @property
    def own_nodes(self) -> int:
        """Number of nodes that did not fall back."""
        return sum(count for _, count in self.ran_on) - len(self.fallback)


def assigned_nodes(session: Any) -> list[PlacedNode] | None:
    """Return the nodes that the runtime assigned; None if it cannot tell.

    A compiled partition counts by the nodes that are in it. The session must have been made with
    :data:`~esm_protos.session_settings.RECORD`.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return [
        PlacedNode(node.name, node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def profiled_nodes(
    events: Iterable[dict[str, Any]],
) -> tuple[list[PlacedNode], frozenset[tuple[str, str]]]:
    """Return the nodes in the profile of a run, and which of them compute shapes.

    Copies that the runtime inserts between providers do not count as nodes. A compiled partition
    is one node.

    Returns:
        The nodes; the names and operators of those that compute shapes.
    """
    found = {}
    for event in events:
        if not profiling.is_node(event):
            continue
        arguments = event["args"]
        if not arguments["op_name"].startswith("Memcpy"):
            name = event["name"].removesuffix("_kernel_time")
            found[name, arguments.get("node_index")] = arguments  # loops repeat their nodes
    nodes = []
    shapes: set[tuple[str, str]] = set()
    others: set[tuple[str, str]] = set()
    for (name, number), arguments in found.items():
        operator = arguments["op_name"]
        nodes.append(PlacedNode(name, operator, arguments["provider"]))
        about = shapes if _is_about_shapes(arguments) else others
        about.add((name, operator))
        if name == f"{operator}_{number}":  # the profiler's name for a node without one
            about.add(("", operator))
    return nodes, frozenset(shapes - others)


def _is_about_shapes(arguments: dict[str, Any]) -> bool:
    """Return whether a node computes shapes: few integers in, few integers out."""
    outputs = arguments.get("output_type_shape", [])
    tensors = [*arguments.get("input_type_shape", []), *outputs]
    return bool(outputs) and all(
        kind in ("int64", "int32", "bool") and math.prod(shape) <= _SMALL_TENSOR
        for tensor in tensors
        for kind, shape in tensor.items()
    )


def placement(
    nodes: Collection[PlacedNode],
    own: Collection[str],
    shapes: Collection[tuple[str, str]] = frozenset(),
) -> Placement:
    """Return the number of nodes per provider, and the nodes that fell back.

    Arithmetic on shapes is no fallback: the runtime deliberately keeps it on the CPU. It is one if
    the model has nothing else on its provider.

    Args:
        nodes: All nodes.
        own: Providers of the runtime on which a node does not count as fallback.
        shapes: Names and operators of nodes that compute shapes.
    """
    elsewhere = tuple(node for node in nodes if node.provider not in own)
    if len(elsewhere) < len(nodes):
        elsewhere = tuple(node for node in elsewhere if node[:2] not in shapes)
    counts = Counter(node.provider for node in nodes)
    return Placement(tuple(counts.most_common()), elsewhere)


def called(runtime_name: str) -> str:
    """Return the short name of one of the runtime's providers."""
    return runtime_name.removesuffix("ExecutionProvider")


def refusal(placement: Placement, runtime_name: str) -> str:
    """Return the message that refuses a model with fallback nodes."""
    names = ", ".join(map(str, placement.fallback[:_SHOWN_NODES]))
    more = len(placement.fallback) - _SHOWN_NODES
    total = sum(count for _, count in placement.ran_on)
    return (
        f"{len(placement.fallback)} of {total} nodes did not run on {called(runtime_name)}: {names}"
        f"{f' and {more} more' if more > 0 else ''}; allow fallback to measure the model anyway"
    )
