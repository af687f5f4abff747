"""Execution providers as a device offers them, and the options that they take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from esm_protos.nearest import unknown

OPTION_TYPES = ("bool", "int", "float", "text")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Name that a flag, ``NAME=VALUE`` and a list with commas can carry."""
_WHOLE = re.compile(r"0|-?[1-9]\d*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
_THREADS = re.compile("INFERENCE_NUM_THREADS")
"""Entries of configurations in options that set a provider's number of threads."""
_NO_NAME = "is not a name: give up to 64 letters, digits, _, - and ., a letter or digit first"


class OptionError(ValueError):
    """A provider has no such option, or the option no such value: one line with what there is."""


class DeclarationError(ValueError):
    """The class of a provider declares a name or an option that is of no use."""


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

    def check(self) -> None:
        """Check the declaration; options that a device reports need no check.

        Raises:
            DeclarationError: the name, the type, the default or a choice is invalid.
        """
        if not _is_name(self.name):
            raise DeclarationError(f"the option {self.name!r} {_NO_NAME}")
        if self.type not in OPTION_TYPES:
            raise DeclarationError(
                f"the option '{self.name}' has the type {self.type!r}: give "
                f"{' or '.join(OPTION_TYPES)}"
            )
        if isinstance(self.choices, str) or not all(isinstance(each, str) for each in self.choices):
            raise DeclarationError(
                f"the option '{self.name}' has the choices {self.choices!r}: give a tuple of texts"
            )
        anything = replace(self, choices=())
        checks = [("choice", value, anything) for value in self.choices]
        for what, value, taker in (*checks, ("default", self.default, self)):
            if not isinstance(value, str) or not taker.takes(value):
                raise DeclarationError(
                    f"the option '{self.name}' has the {what} {value!r}: give {taker.values}, as "
                    "text"
                )

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
    """An execution provider of a device.

    Attributes:
        name: what clients call it.
        runtime_name: what ONNX Runtime calls it, such as ``"CPUExecutionProvider"``.
        identity: facts beyond those of the machine and the runtime that must be equal for two
            measurements to be comparable, such as a GPU's name.
        may_fall_back: the runtime may run some of a model's nodes on another provider.
        version: version of the package that has it.
        vendor: its vendor.
        kind: kinds of its devices, ``"CPU"``, ``"GPU"`` or ``"NPU"``, with commas; empty: unknown.
        problem: why it does not work; empty if it does.
        open_options: it takes any option, as text, beside those in ``options``.
        threads_option: its option that the number of threads sets; empty: none.
        chooses_threads: it has threads of its own, whatever number is asked for.
    """

    name: str
    runtime_name: str = ""
    options: tuple[ProviderOption, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict, hash=False)
    may_fall_back: bool = False
    version: str = ""
    vendor: str = ""
    kind: str = ""
    problem: str = ""
    open_options: bool = False
    threads_option: str = ""
    chooses_threads: bool = False

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}".rstrip()

    @property
    def line(self) -> str:
        """Name, version, and the vendor and the devices, or the problem."""
        about = self.problem or ", ".join(filter(None, (self.vendor, self.kind)))
        return f"{self.title}: {about}" if about else self.title

    def check(self) -> None:
        """Check the declaration of a provider and its options.

        Raises:
            DeclarationError: a name or an option is invalid, or two options have one name.
        """
        if not _is_name(self.name):
            raise DeclarationError(f"the name {self.name!r} {_NO_NAME}")
        if not isinstance(self.options, tuple | list):
            raise DeclarationError(f"options is {self.options!r}: give a tuple of ProviderOption")
        seen: set[str] = set()
        for option in self.options:
            if not isinstance(option, ProviderOption):
                raise DeclarationError(f"options has {option!r}: give a tuple of ProviderOption")
            option.check()
            if option.name in seen:
                raise DeclarationError(f"two options are named '{option.name}': rename one of them")
            seen.add(option.name)
        if not isinstance(self.identity, Mapping) or not all(
            isinstance(word, str) for pair in self.identity.items() for word in pair
        ):
            raise DeclarationError(f"identity is {self.identity!r}: give a dict of texts")

    def changes(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return the given values that are not the defaults of the table."""
        defaults = {option.name: option.default for option in self.options}
        return {name: value for name, value in given.items() if value != defaults.get(name)}

    def complete(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return a value for every option, in the table's order: the given one or its default.

        Given options that are not in the table follow if the provider takes any option.

        Raises:
            OptionError: there is no such option, or it takes no such value.
        """
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if self.threads_option and name == self.threads_option:
                raise OptionError(f"{name}={value}: the number of threads sets it, leave it out")
            if name not in known and self.open_options and _is_name(name) and value:
                if entry := _THREADS.search(value):
                    text = f"the number of threads sets {entry[0]}, leave it out"
                    raise OptionError(f"{name}={value}: {text}")
                continue
            if name not in known:
                has = ", ".join(f"{each.name} ({each.values})" for each in self.options)
                cure = f"choose {has}" if has else "it has none"
                where = f"of the provider {self.name}"
                text = unknown("option", name, known, where=where, choices=cure)
                raise OptionError(f"{name}={value}: {text}")
            if not known[name].takes(value):
                raise OptionError(f"{name}={value}: give {known[name].values}")
        return {**{name: option.default for name, option in known.items()}, **given}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProviderInfo:
        """Build from plain values, as ``dataclasses.asdict`` gives them.

        Values that a later version adds are left out.
        """
        options = (
            ProviderOption(**{**option, "choices": tuple(option["choices"])})
            for option in data["options"]
        )
        own = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        return cls(**{**own, "options": tuple(options)})


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(_NAME.fullmatch(name))
