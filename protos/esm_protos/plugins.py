"""Plug-ins by name: built in, of an installed package, or a class in a Python file.

A family names its built-in plug-ins and a group of entry points. A name is looked up in this
order: ``path/to/file.py:Class``, the built-in ones, the entry points of installed packages.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from esm_protos.nearest import nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OWN_MODULES = "esm_own_"
"""Prefix of the names of modules that are read from files; they can be imported nowhere else."""
_READ: dict[str, tuple[tuple[int, int], ModuleType]] = {}
"""Name of a module that was read from a file -> when it was written and its size, the module."""


class PluginError(Exception):
    """A plug-in cannot be loaded. The message is one line that names the cure.

    Attributes:
        library: of an ImportError, the module that is missing; else ``""``.
    """

    def __init__(self, message: str, library: str = "") -> None:
        super().__init__(message)
        self.library = library


@dataclass(frozen=True)
class Family:
    """A kind of plug-in.

    Attributes:
        what: names one of them in messages, such as ``"search space"``.
        group: of entry points, such as ``"esm.spaces"``.
        base: ``"package.module:Class"`` that a plug-in derives from.
        builtin: name -> ``"package.module:Class"``.
        required: class attributes that a plug-in sets itself.
    """

    what: str
    group: str
    base: str
    builtin: Mapping[str, str]
    required: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return the built-in names, then those of installed packages."""
        return [*self.builtin, *(name for name in self._installed() if name not in self.builtin)]

    def load(self, name: str) -> type[Any]:
        """Return the class behind a name; its libraries are loaded now.

        Args:
            name: as :meth:`names` lists it, or ``path/to/file.py:Class``.

        Raises:
            PluginError: there is no such plug-in, or it cannot be loaded.
        """
        path, class_name = split(name)
        if path is not None:
            return self._of_file(path, class_name)
        if name in self.builtin:
            try:
                found: type[Any] = load(self.builtin[name])
            except ModuleNotFoundError as error:
                library = error.name or ""
                raise PluginError(f"{self.what} '{name}' needs {library}", library) from error
            return found
        installed = self._installed()
        if name not in installed:
            names = self.names()
            raise PluginError(
                f"unknown {self.what} '{name}': {nearest(name, names)}choose {', '.join(names)}, "
                "or give your own as path/to/file.py:Class"
            )
        entry = installed[name]
        try:
            return self._checked(entry.load(), entry.value)
        except PluginError:
            raise
        except Exception as error:  # a package may fail in any way
            raise PluginError(
                f"{self.what} '{name}' of {entry.value} cannot be loaded: {type(error).__name__}: "
                f"{error}"
            ) from error

    def _installed(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # slow to load

        return {entry.name: entry for entry in entry_points(group=self.group)}

    def _of_file(self, path: Path, class_name: str) -> type[Any]:
        module = read_module(path, self.what)
        base = load(self.base)
        if _derives(getattr(module, class_name, None), base):
            return self._checked(getattr(module, class_name), f"{path}:{class_name}")
        found = [
            key
            for key, value in vars(module).items()
            if _derives(value, base) and value.__module__ == module.__name__
        ]
        if found and not class_name:
            which = " or ".join(f"{path}:{key}" for key in found)
            raise PluginError(f"'{path}' is a file, say which class of it: {which}")
        what = f" '{class_name}'" if class_name else ""
        has = f"it has {', '.join(found)}" if found else f"derive one from {base.__name__}"
        raise PluginError(f"'{path}' has no {self.what} class{what}: {has}")

    def _checked(self, cls: Any, where: str) -> type[Any]:
        base = load(self.base)
        if not _derives(cls, base):
            raise PluginError(
                f"{where} is no {self.what} class: derive it from {base.__module__}:{base.__name__}"
            )
        missing = [part for part in self.required if not hasattr(cls, part)]
        abstract = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing or abstract:
            raise PluginError(f"{where} must set {', '.join([*missing, *abstract])}")
        found: type[Any] = cls
        return found


def load(where: str) -> Any:
    """Return what ``"package.module:name"`` names.

    Raises:
        ModuleNotFoundError: a library that the module needs is not installed.
    """
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def split(name: str) -> tuple[Path | None, str]:
    """Return file and class of ``path/to/file.py:Class``; no file of any other name."""
    path, _, class_name = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    return (Path(path), class_name) if path.endswith(".py") else (None, name)


def absolute(name: str) -> str:
    """Return a name that means the same from any folder: paths of files become absolute."""
    path, class_name = split(name)
    if path is None:
        return name
    return f"{path.resolve()}:{class_name}" if class_name else str(path.resolve())


def read_module(path: Path, what: str) -> ModuleType:
    """Run a Python file of the user's and return it as a module.

    A file that has not changed since is not run again: its classes stay the same ones.

    Args:
        what: that is to be found there, in messages.

    Raises:
        PluginError: there is no such file, or running it fails; the message names the line.
    """
    if not path.is_file():
        raise PluginError(f"there is no file '{path}' to read the {what} from")
    place, written = path.resolve(), path.stat()
    # Two files of one name are two modules.
    name = f"{OWN_MODULES}{path.stem}_{hashlib.sha256(bytes(place)).hexdigest()[:8]}"
    version = (written.st_mtime_ns, written.st_size)
    if name in _READ and _READ[name][0] == version:
        return _READ[name][1]
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anything that a user's file may do
        raise PluginError(f"'{path}' cannot be imported: {described(error, path)}") from error
    _READ[name] = version, module
    return module


def described(error: BaseException, path: Path | None) -> str:
    """Return an error on one line, with the line of a user's file that it comes from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path is not None and Path(frame.filename).resolve() == path.resolve()
    ]
    if isinstance(error, SyntaxError):  # names its line itself
        lines = []
    at = f" (line {lines[-1]} of {path})" if lines else ""
    return f"{' '.join(f'{type(error).__name__}: {error}'.split())}{at}"


def _derives(value: Any, base: type[Any]) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and value is not base
