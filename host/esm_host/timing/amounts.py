"""Inputs whose values decide how much a model computes: trip counts, conditions, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esm_host.arguments import argument
from esm_protos.graphs import bodies
from esm_protos.v1 import onnx_view_pb2 as view

_DECIDES: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "If": (0,),
    "Loop": (0, 1),
    "NonMaxSuppression": (2,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Slice": (1, 2),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Operators, and the indices of their inputs that decide how much they compute."""

_PASSES = frozenset(
    ("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")
)
"""Operators that pass on the values of their first input."""


def deciding_inputs(model: view.Model, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the inputs that decide how much an operator computes, with the operator's type."""
    wanted = set(names)
    sources: dict[str, str] = {name: name for name in wanted}
    found: dict[str, str] = {}
    nodes = [
        node for body in bodies(model) if isinstance(body, view.Graph) for node in body.node
    ]  # names within functions are local
    for node in nodes:
        if node.op_type in _PASSES and node.input and node.input[0] in sources and node.output:
            sources[node.output[0]] = sources[node.input[0]]
    for node in nodes:
        for place in _DECIDES.get(node.op_type, ()):
            if place < len(node.input) and (name := sources.get(node.input[place])) is not None:
                found.setdefault(name, node.op_type)
    return list(found.items())


def drawn_amounts(found: Sequence[tuple[str, str]]) -> str:
    """Return the warning that such inputs were drawn, with marked names of arguments."""
    said = ", ".join(f"'{name}' (of {kind})" for name, kind in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"values of {said}{more} decide how much is computed and were drawn: set them by "
        f"{argument('inputs')}"
    )
