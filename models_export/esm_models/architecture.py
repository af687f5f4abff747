"""Point of a search space: immutable, hashable, with a JSON form and a short text form."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from esm_models.errors import InvalidArchitectureError

_PLAIN = re.compile(r'[^\s|":*]+')
"""Label that the short form writes unquoted."""
_RESOLUTION = re.compile(r"\s*([1-9][0-9]{0,5}) ?px:")
_CONTEXT = re.compile(r"\s*([1-9][0-9]{0,9}) ([A-Za-z_]\w*):(?=\s)")
"""Context, at the beginning."""
_LABEL = r'[^\s|":*;]+'
"""Label of a choice of the network or of a unit."""
_CHOICE = re.compile(rf"\s*({_LABEL});(?=\s)")
"""Option of the whole network, at the beginning."""
_UNIT_CHOICE = re.compile(rf"\s*({_LABEL}):(?=\s)")
"""Option of a unit, before its blocks."""
_PART = re.compile(
    rf"""\s*(?:(?P<bar>\|)|(?:(?P<count>[1-9][0-9]{{0,3}})\*)?"""
    rf"""(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<plain>{_PLAIN.pattern})))"""
)


@dataclass(frozen=True)
class Architecture:
    """Architecture as the option labels of its blocks, its units and the network.

    Attributes:
        space: Name of the search space.
        units: One tuple per unit, with one option label, such as ``"k3e1/2"``, per block.
        resolution: Input height and width, pixels; None if the space sets them for all
            architectures.
        choice: Option label of the whole network, such as ``"d192"``; "" if it has no choice.
        unit_choices: Option label of every unit, such as ``"w64"``; empty if units have no choice.
        contexts: Name and value of each context, sorted by name, such as ``("past", 512)``; empty
            if the space has none.

    Raises:
        InvalidArchitectureError: the units or their choices are not tuples, or not equally many.
    """

    space: str
    units: tuple[tuple[str, ...], ...]
    resolution: int | None = None
    choice: str = ""
    unit_choices: tuple[str, ...] = ()
    contexts: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if type(self.units) is not tuple or not all(type(unit) is tuple for unit in self.units):
            raise InvalidArchitectureError(
                f"units {self.units!r}: give a tuple of tuples of labels; Architecture.from_json "
                "reads lists"
            )
        if type(self.unit_choices) is not tuple or (
            self.unit_choices and len(self.unit_choices) != len(self.units)
        ):
            raise InvalidArchitectureError(
                f"unit_choices {self.unit_choices!r}: give a tuple with one label per unit, "
                f"{len(self.units)}"
            )
        if self.contexts:
            object.__setattr__(self, "contexts", tuple(sorted(dict(self.contexts).items())))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(len(unit) for unit in self.units)

    @cached_property
    def key(self) -> str:
        """Identifier of 16 hexadecimal digits, the same on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return ``{"space": ..., "units": [[label, ...], ...]}``.

        ``"resolution"``, ``"choice"``, ``"unit_choices"`` and ``"contexts"`` are there if they are
        set.
        """
        data: dict[str, Any] = {"space": self.space, "units": [list(u) for u in self.units]}
        if self.resolution is not None:
            data["resolution"] = self.resolution
        if self.choice:
            data["choice"] = self.choice
        if self.unit_choices:
            data["unit_choices"] = list(self.unit_choices)
        if self.contexts:
            data["contexts"] = dict(self.contexts)
        return data

    @classmethod
    def from_json(cls, data: object) -> Architecture:
        """Read the form that :meth:`to_json` writes.

        Raises:
            InvalidArchitectureError: ``data`` has another form.
        """
        if isinstance(data, Mapping):
            space, units = data.get("space"), data.get("units")
            resolution, choice = data.get("resolution"), data.get("choice", "")
            unit_choices = data.get("unit_choices", [])
            contexts = data.get("contexts", {})
            if (
                isinstance(space, str)
                and (resolution is None or type(resolution) is int)
                and isinstance(choice, str)
                and isinstance(units, list)
                and all(_is_labels(labels) for labels in [*units, unit_choices])
                and isinstance(contexts, dict)
                and all(type(value) is int for value in contexts.values())
            ):
                blocks = tuple(tuple(unit) for unit in units)
                own = tuple(unit_choices)
                return cls(space, blocks, resolution, choice, own, tuple(contexts.items()))
        raise InvalidArchitectureError(
            'an architecture is written {"space": "resnet", "units": [["k3e1/2", ...], ...]}; '
            f"got {json.dumps(data, default=str)[:120]}"
        )

    def to_text(self) -> str:
        """Return the short form, such as ``"k3e1 | 2*k5e1"``.

        ``|`` separates units, ``2*`` counts equal neighbours, and ``-`` is a unit without blocks.
        An architecture with its own resolution begins with it: ``"160 px: k3e1 | 2*k5e1"``. The
        option of the network ends with ``;`` and that of a unit with ``:``, as in
        ``"d192; w64: k3e1 | w80: 2*k5e1"``. Contexts are in front: ``"512 past: d192; 2*k3e1"``.
        Ambiguous labels of blocks are written as JSON strings.
        """
        units = [
            " ".join(
                _short_label(label)
                if (n := len(list(group))) == 1
                else f"{n}*{_short_label(label)}"
                for label, group in groupby(unit)
            )
            for unit in self.units
        ]
        chosen = [f"{label}: " if label else "" for label in self.unit_choices] or [""] * len(units)
        parts = [f"{own}{unit or '-'}" for own, unit in zip(chosen, units, strict=True)]
        text = " | ".join(parts)
        text = f"{self.choice}; {text}" if self.choice else text
        text = "".join(f"{value} {name}: " for name, value in self.contexts) + text
        return text if self.resolution is None else f"{self.resolution} px: {text}"

    def at(self, **contexts: int) -> Architecture:
        """Return the same network in these contexts; others keep their values."""
        return replace(self, contexts=tuple((dict(self.contexts) | contexts).items()))

    @classmethod
    def from_text(cls, space: str, text: str) -> Architecture:
        """Read the form that :meth:`to_text` writes.

        Args:
            space: Name of the search space, which the short form omits.
            text: Architecture in the short form.

        Raises:
            InvalidArchitectureError: ``text`` is not in the short form.
        """
        if not isinstance(text, str):
            raise InvalidArchitectureError(
                f"the short form of an architecture is text like 'k3e1/2 | 2*k5e1'; got {text!r}"
            )
        side, text = _RESOLUTION.match(text), text.rstrip()
        at = side.end() if side else 0
        contexts: dict[str, int] = {}
        while context := _CONTEXT.match(text, at):
            contexts[context[2]] = int(context[1])
            at = context.end()
        choice = _CHOICE.match(text, at)
        at = choice.end() if choice else at
        units: list[list[str]] = [[]]
        unit_choices: list[str] = []
        while at < len(text):
            own = (
                None
                if units[-1] or len(unit_choices) == len(units)
                else _UNIT_CHOICE.match(text, at)
            )
            if own:
                unit_choices += [""] * (len(units) - 1 - len(unit_choices)) + [own[1]]
                at = own.end()
                continue
            part = _PART.match(text, at)
            label = None if part is None else _label(part)
            if part is None or label is None:
                raise InvalidArchitectureError(
                    "the short form of an architecture is written like 'k3e1/2 | 2*k5e1', with | "
                    f"between units; got {json.dumps(text[:120])}"
                )
            if part["bar"]:
                units.append([])
            elif label != "-" or part["quoted"]:
                units[-1] += int(part["count"] or 1) * [label]
            at = part.end()
        if unit_choices:
            unit_choices += [""] * (len(units) - len(unit_choices))
        return cls(
            space,
            tuple(map(tuple, units)),
            int(side[1]) if side else None,
            choice[1] if choice else "",
            tuple(unit_choices),
            tuple(contexts.items()),
        )


def is_plain(label: str) -> bool:
    """Return whether a choice has this form in the short form of an architecture."""
    return re.fullmatch(_LABEL, label) is not None


def _is_labels(labels: object) -> bool:
    return isinstance(labels, list) and all(isinstance(label, str) for label in labels)


def _short_label(label: str) -> str:
    """Return a label for the short form, in quotes if needed."""
    plain = _PLAIN.fullmatch(label) and label != "-" and label.isprintable()
    return label if plain else json.dumps(label)


def _label(part: re.Match[str]) -> str | None:
    """Return the label of a part, "" for a bar; None if its quotes hold no JSON string."""
    if not part["quoted"]:
        return part["plain"] or ""
    try:
        return str(json.loads(part["quoted"]))
    except ValueError:
        return None
