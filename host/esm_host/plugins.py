"""Plug-ins of the host by name: what is known of one before it is loaded, and the class itself.

Names are those of :class:`~esm_protos.plugins.Family`; errors are the host's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from esm_host.errors import EsmError, UsageError
from esm_protos import plugins
from esm_protos.plugins import Family, PluginError, described, split
from esm_protos.text import install

C = TypeVar("C")


@dataclass(frozen=True)
class Entry:
    """What is known of a plug-in before it is loaded.

    Attributes:
        where: ``"package.module:Class"``, or the name of a plug-in that is not built in.
        about: a line for help and documentation.
        params: of the constructor, where this name differs from the class's defaults.
    """

    where: str
    about: str
    params: Mapping[str, Any] = field(default_factory=dict)


def about(cls: type[Any]) -> str:
    """Return the first line of a class's docstring, without the full stop."""
    return (inspect.getdoc(cls) or cls.__name__).partition("\n")[0].removesuffix(".")


def plugin_class(family: Family, name: str, extra: str = "host") -> type[Any]:
    """Return the class behind a name; its library is loaded now.

    Args:
        extra: of the install, for libraries other than torch.

    Raises:
        UsageError: there is no such plug-in, or it cannot be loaded.
    """
    try:
        return family.load(name)
    except PluginError as error:
        raise _usage_error(error, extra) from error


def load_class(where: str, what: str, extra: str = "host") -> Any:
    """Return a class or a function by where it is; its library is loaded now.

    Args:
        where: ``package.module:name``.
        what: names the class in the error.
        extra: of the install, for libraries other than torch.

    Raises:
        UsageError: its library is not installed.
    """
    try:
        return plugins.load(where)
    except ModuleNotFoundError as error:
        library = error.name or ""
        raise _usage_error(PluginError(f"{what} needs {library}", library), extra) from error


def read_module(path: Path, what: str) -> ModuleType:
    """Run a Python file of the user's and return it as a module.

    Args:
        what: that is to be found there, in messages.

    Raises:
        UsageError: there is no such file, or running it fails.
    """
    try:
        return plugins.read_module(path, what)
    except PluginError as error:
        raise _usage_error(error) from error


def build(cls: type[C], name: str, given: Mapping[str, Any], **offered: Any) -> C:
    """Return an instance of a plug-in.

    Args:
        name: of the plug-in.
        given: arguments of the constructor.
        offered: further ones, for constructors that have parameters of these names.

    Raises:
        UsageError: the constructor of a class from a file fails.
    """
    known = inspect.signature(cls).parameters
    arguments = {key: value for key, value in offered.items() if key in known} | dict(given)
    path, _ = split(name)
    if path is None:
        return cls(**arguments)
    try:
        return cls(**arguments)
    except EsmError:
        raise
    except Exception as error:  # a user's constructor may fail in any way
        raise UsageError(f"{name} cannot be built: {described(error, path)}") from error


def _usage_error(error: PluginError, extra: str = "host") -> UsageError:
    if not error.library:
        return UsageError(str(error))
    return UsageError(f"{error}: {install('host' if error.library == 'torch' else extra)}")
