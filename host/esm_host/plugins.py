"""Plug-ins of the host by name: their description without loading them, and their classes.

Names are those of :class:`~esm_protos.plugins.Family`; errors are the host's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from esm_host.errors import EsmError, UsageError
from esm_protos import plugins
from esm_protos.plugins import Family, PluginError, described, own_failure, split
from esm_protos.text import install

C = TypeVar("C")


@dataclass(frozen=True)
class Entry:
    """Description of a plug-in that is not yet loaded.

    Attributes:
        where: ``"package.module:Class"``, or the name of a plug-in that is not built in.
        about: One line for help and documentation.
        params: Arguments of the constructor that replace its defaults.
    """

    where: str
    about: str
    params: Mapping[str, Any] = field(default_factory=dict)


def about(cls: type[Any]) -> str:
    """Return the first line of a class's docstring, without the full stop."""
    return (inspect.getdoc(cls) or cls.__name__).partition("\n")[0].removesuffix(".")


@contextmanager
def own_failures(plugin: object, what: str = "") -> Iterator[None]:
    """Turn an exception of a user's class into one line with its file and line.

    Args:
        plugin: Class or instance. An exception of a class that is not from a user's file passes
            unchanged.
        what: What failed, such as ``"cannot be built"``.

    Raises:
        EsmError: the user's code failed.
    """
    try:
        yield
    except EsmError:
        raise
    except Exception as error:  # anything that a user's class may do
        if text := own_failure(plugin, error, what):
            raise EsmError(text) from error
        raise


def plugin_class(family: Family, name: str, extra: str = "host") -> type[Any]:
    """Load the class of a plug-in and its library.

    Args:
        family: Family of the plug-in.
        name: Name of the plug-in.
        extra: Extra of the package that installs the library, if it is not torch.

    Raises:
        UsageError: the plug-in does not exist or cannot be loaded.
    """
    try:
        return family.load(name)
    except PluginError as error:
        raise _usage_error(error, extra) from error


def load_class(where: str, what: str, extra: str = "host") -> Any:
    """Load a class or a function, and its library, from its location.

    Args:
        where: Location, ``package.module:name``.
        what: Name of the class in the error.
        extra: Extra of the package that installs the library, if it is not torch.

    Raises:
        UsageError: the library is not installed.
    """
    try:
        return plugins.load(where)
    except ModuleNotFoundError as error:
        library = error.name or ""
        raise _usage_error(PluginError(f"{what} needs {library}", library), extra) from error


def read_module(path: Path, what: str) -> ModuleType:
    """Run a Python file of the user's and return it as a module.

    Args:
        path: Path of the file.
        what: Expected content, for messages.

    Raises:
        UsageError: the file does not exist, or fails.
    """
    try:
        return plugins.read_module(path, what)
    except PluginError as error:
        raise _usage_error(error) from error


def build(cls: type[C], name: str, given: Mapping[str, Any], **offered: Any) -> C:
    """Return an instance of a plug-in.

    Args:
        cls: Class of the plug-in.
        name: Name of the plug-in.
        given: Arguments of the constructor.
        **offered: Further arguments, passed if the constructor has parameters of these names.

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
