"""Text of the inputs that a model was fed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_GROUPS, _NAMES = 4, 3


def fed_text(inputs: Iterable[tuple[str, str, Sequence[int]]], most: int = _GROUPS) -> str:
    """Return ``image 1x3x224x224 float32; ids, mask 1x128 int64``.

    Args:
        inputs: Names, types and dimensions.
        most: Number of shapes to list; further inputs are counted.
    """
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, kind, dims in inputs:
        alike.setdefault((kind, tuple(dims)), []).append(name)
    said = []
    for (kind, dims), names in list(alike.items())[:most]:
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        shape = "x".join(map(str, dims)) or "scalar"
        said.append(f"{', '.join(names[:_NAMES])}{more} {shape} {kind}")
    if left := sum(map(len, list(alike.values())[most:])):
        said.append(f"and {left} more")
    return "; ".join(said)
