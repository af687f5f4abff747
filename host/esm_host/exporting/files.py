"""Folder per architecture with ``model.onnx``, ``model.py`` and ``weights.pt``, and an index."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError
from esm_models.graph import FLOAT32
from esm_models.space import SearchSpace
from esm_protos.nearest import unknown
from esm_protos.weights import draw_weights

if TYPE_CHECKING:
    from esm_host.exporting.torch_source import TorchSource

SCHEMA_VERSION = 1

FORMATS = ("onnx", "torch", "json")

INDEX = "architectures.json"

_IN_CONTEXT = ("_ms", "_mj", "_uj_s", "_bytes", "flops")
"""Ends of the names of values that hold in one context."""

_MOST_BYTES = 2**31 - 2**20
"""Largest size of a file's weights; protobuf's limit is 2 GiB, and operators need some of it."""


@dataclass(frozen=True)
class Exported:
    """Export of one architecture.

    Attributes:
        architecture: The architecture.
        folder: Folder of its files; with JSON alone it is not created.
        parameters: Number of values in the initializers of its graph.
    """

    architecture: Architecture
    folder: Path
    parameters: int


def chosen_formats(space: SearchSpace, formats: Sequence[str] | None) -> tuple[str, ...]:
    """Return the chosen formats; None chooses all that the space supports.

    Raises:
        UsageError: a format does not exist, or the list is empty.
    """
    if formats is None:
        return FORMATS if space.dtype == FLOAT32 else ("onnx", "json")
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"{argument('formats')}: {unknown('format', name, FORMATS)}")
    if not formats:
        raise UsageError(f"{argument('formats')} is empty: choose from {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in formats)


def check_folder(path: Path) -> None:
    """Check that the folder is empty or can be created.

    Raises:
        UsageError: the folder is not empty, or its parent does not exist.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"{argument('output')} {path} already exists: give a new or an empty folder"
        )
    if not path.exists() and not path.parent.is_dir():
        raise UsageError(f"{argument('output')} {path}: the folder {path.parent} does not exist")


def read_entries(
    space: SearchSpace, entries: Sequence[Architecture | Mapping[str, Any] | str]
) -> list[tuple[Architecture, dict[str, Any]]]:
    """Return architectures of the space, and the further values of each entry.

    Latencies and other values that hold in one context are left out if the space places the
    architecture in another.

    Args:
        space: Search space.
        entries: Architectures, their JSON or short forms, or mappings that hold one as
            ``"architecture"``, such as ``results`` of ``esm-host predict --json``.

    Raises:
        UsageError: there are no entries.
        InvalidArchitectureError: an architecture is of another space; the message gives its
            number.
    """
    if not len(entries):
        raise UsageError("an empty list of architectures exports nothing: give one")
    read: list[tuple[Architecture, dict[str, Any]]] = []
    for number, entry in enumerate(entries, start=1):
        others: dict[str, Any] = {}
        try:
            if isinstance(entry, Mapping) and "architecture" in entry:
                others = {k: v for k, v in entry.items() if k != "architecture"}
                entry = entry["architecture"]
            architecture = space.read(entry)
            space.validate(architecture)
        except InvalidArchitectureError as error:
            text = f"architecture {number}: {error}"
            raise InvalidArchitectureError(text, error.lacking, error.foreign) from error
        if others and not _is_placed(entry, architecture, space):
            others = {k: v for k, v in others.items() if not k.endswith(_IN_CONTEXT)}
        read.append((architecture, others))
    return read


def _is_placed(
    given: Architecture | Mapping[str, Any] | str, architecture: Architecture, space: SearchSpace
) -> bool:
    """Return whether an architecture says itself the contexts in which the space places it."""
    if isinstance(given, str):
        given = Architecture.from_text(space.name, given)
    elif not isinstance(given, Architecture):
        given = Architecture.from_json(given)
    said, placed = _contexts(given), _contexts(architecture)
    return placed.keys() <= said.keys() and all(
        value == placed.get(name, getattr(space, name, None)) for name, value in said.items()
    )


def _contexts(architecture: Architecture) -> dict[str, int | None]:
    side = architecture.resolution
    return {**({} if side is None else {"resolution": side}), **dict(architecture.contexts)}


def export_architectures(
    space: SearchSpace,
    entries: Sequence[Architecture | Mapping[str, Any] | str],
    output: Path,
    formats: Sequence[str] | None,
    seed: int,
) -> list[Exported]:
    """Write the networks of architectures; all errors are reported before the first file.

    Args:
        space: Search space.
        entries: As in :func:`read_entries`.
        output: Folder, which is created.
        formats: Formats of :data:`FORMATS`; None for all that the space supports.
        seed: Random seed of the weights, which are those that devices draw.

    Returns:
        Exports in the order of the entries; equal ones share their files.

    Raises:
        UsageError: an argument is invalid, a network has no torch form, or is too large.
        InvalidArchitectureError: an architecture is not in the space.
    """
    formats = chosen_formats(space, formats)
    if seed < 0:
        raise UsageError(f"{argument('seed')} {seed}: give 0 or more")
    check_folder(output)
    read = read_entries(space, entries)
    different = dict.fromkeys(architecture for architecture, _ in read)
    exported = {a: Exported(a, output / _name(a), _parameters(space, a)) for a in different}
    if "onnx" in formats:
        for each in exported.values():
            size = 4 * each.parameters
            if size > _MOST_BYTES:
                raise UsageError(
                    f"the weights of {each.folder.name} take {size / 2**30:.1f} GiB, and an ONNX "
                    f"file holds 2: export {argument('formats')} torch,json, or use a smaller "
                    f"{argument('width_mult')}"
                )
    sources = _sources(space, different) if "torch" in formats else {}
    output.mkdir(exist_ok=True)
    weights = partial(draw_weights, seed=seed)
    for architecture, each in exported.items():
        if formats != ("json",):
            each.folder.mkdir()
        if "onnx" in formats:
            (each.folder / "model.onnx").write_bytes(space.build(architecture, weights, free=True))
        if "torch" in formats:
            _write_torch(each.folder, sources[architecture], seed)
    if "json" in formats:
        index = {
            "schema_version": SCHEMA_VERSION,
            "space": space.settings(),
            "seed": seed,
            "results": [
                {
                    **others,
                    "key": architecture.key,
                    "folder": exported[architecture].folder.name,
                    "parameters": exported[architecture].parameters,
                    "architecture": architecture.to_json(),
                }
                for architecture, others in read
            ],
        }
        (output / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [exported[architecture] for architecture, _ in read]


def _sources(
    space: SearchSpace, architectures: Iterable[Architecture]
) -> dict[Architecture, TorchSource]:
    from esm_host.exporting.torch_source import torch_source  # slow to load

    return {a: torch_source(space, a) for a in architectures}


def _write_torch(folder: Path, source: TorchSource, seed: int) -> None:
    import torch

    from esm_host.exporting.torch_module import weights_of

    (folder / "model.py").write_text(source.text, encoding="utf-8")
    torch.save(weights_of(source, partial(draw_weights, seed=seed)), folder / "weights.pt")


def _name(architecture: Architecture) -> str:
    """Return the name of an architecture's folder, which Python can import from."""
    stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in architecture.space)
    return f"{stem}_{architecture.key}"


def _parameters(space: SearchSpace, architecture: Architecture) -> int:
    net, _ = space.trace(architecture)
    return sum(math.prod(tensor.dims) for tensor in net.initializers)
