"""Execution providers as a device offers them, and the options that they take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from esm_protos.nearest import unknown

OPTION_TYPES = ("bool", "int", "float", "text")

_WHOLE = re.compile(r"0|-?[1-9]\d*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


class OptionError(ValueError):
    """A provider has no such option, or the option no such value: one line with what there is."""


@dataclass(frozen=True)
class ProviderOption:
    """One option of an execution provider. Values are text, as the runtime takes them.

    Attributes:
        type: ``"bool"`` (values ``0`` and ``1``), ``"int"``, ``"float"`` or ``"text"``.
        choices: all values that it takes; empty: any of its type.
    """

    name: str
    type: str
    default: str
    help: str = ""
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """Allowed values, in words."""
        if self.type == "bool":
            return "0 or 1"
        if self.choices:
            return " or ".join(self.choices)
        return {"int": "a whole number", "float": "a number"}.get(self.type, "text")

    def takes(self, value: str) -> bool:
        """Return whether a value is one of its own."""
        if self.type == "bool":
            return value in ("0", "1")
        if self.choices:
            return value in self.choices
        pattern = {"int": _WHOLE, "float": _NUMBER}.get(self.type)
        return bool(value if pattern is None else pattern.fullmatch(value))


@dataclass(frozen=True)
class ProviderInfo:
    """An execution provider that works on a device.

    Attributes:
        name: what clients call it.
        runtime_name: what ONNX Runtime calls it, such as ``"CPUExecutionProvider"``.
        identity: facts beyond those of the machine and the runtime that must be equal for two
            measurements to be comparable, such as a GPU's name.
        may_fall_back: the runtime may run some of a model's nodes on another provider.
    """

    name: str
    runtime_name: str = ""
    options: tuple[ProviderOption, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict, hash=False)
    may_fall_back: bool = False

    def complete(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return a value for every option, in the table's order: the given one or its default.

        Raises:
            OptionError: there is no such option, or it takes no such value.
        """
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if name not in known:
                has = ", ".join(f"{each.name} ({each.values})" for each in self.options)
                cure = f"choose {has}" if has else "it has none"
                where = f"of the provider {self.name}"
                text = unknown("option", name, known, where=where, choices=cure)
                raise OptionError(f"{name}={value}: {text}")
            if not known[name].takes(value):
                raise OptionError(f"{name}={value}: give {known[name].values}")
        return {name: given.get(name, option.default) for name, option in known.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProviderInfo:
        """Build from plain values, as ``dataclasses.asdict`` gives them."""
        options = (
            ProviderOption(**{**option, "choices": tuple(option["choices"])})
            for option in data["options"]
        )
        return cls(**{**data, "options": tuple(options)})
