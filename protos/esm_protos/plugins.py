"""Registry of plug-ins: built in, from installed packages, or classes in Python files.

A family has built-in plug-ins and a group of entry points. A name is looked up in this order:
``path/to/file.py:Class``, the built-in ones, the entry points of installed packages.
"""

from __future__ import annotations

import ast
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

from esm_protos.nearest import unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OWN_MODULES = "esm_own_"
"""Prefix of the names of modules read from files, which cannot be imported otherwise."""
_READ: dict[str, tuple[tuple[int, int], ModuleType]] = {}
"""Modules read from files, by name, with the time and the size of the file."""


class PluginError(Exception):
    """Error for a plug-in that cannot be loaded; the message is one line with a remedy.

    Attributes:
        library: Missing module; empty for other errors.
    """

    def __init__(self, message: str, library: str = "") -> None:
        super().__init__(message)
        self.library = library


@dataclass(frozen=True)
class Family:
    """Kind of plug-in.

    Attributes:
        what: Word for a plug-in in messages, such as ``"search space"``.
        group: Group of entry points, such as ``"esm.spaces"``.
        base: Base class of the plug-ins, ``"package.module:Class"``.
        builtin: Built-in plug-ins by name, ``"package.module:Class"``.
        required: Class attributes that a plug-in must set.
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
        """Import a plug-in and return its class.

        Args:
            name: Name as in :meth:`names`, or ``path/to/file.py:Class``.

        Raises:
            PluginError: the plug-in does not exist, or cannot be loaded.
        """
        if not isinstance(name, str):
            raise PluginError(
                f"{self.what} {name!r}: give a name, or your own as path/to/file.py:Class"
            )
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
            known = f"choose {', '.join(names)}, or " if names else ""
            own = "give your own as path/to/file.py:Class"
            raise PluginError(unknown(self.what, name, names, choices=known + own))
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
            raise PluginError(f"'{path}' is a file, name a class of it: {which}")
        if class_name:
            cure = "" if found else f"derive one from {base.__name__}"
            where = f"in '{path}'"
            raise PluginError(
                unknown(f"{self.what} class", class_name, found, where=where, choices=cure)
            )
        raise PluginError(f"'{path}' has no {self.what} class: derive one from {base.__name__}")

    def _checked(self, cls: Any, where: str) -> type[Any]:
        base = load(self.base)
        if not _derives(cls, base):
            raise PluginError(
                f"{where} is not a {self.what} class: derive it from "
                f"{base.__module__}:{base.__name__}"
            )
        missing = [part for part in self.required if not hasattr(cls, part)]
        abstract = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing or abstract:
            raise PluginError(f"{where} must set {', '.join([*missing, *abstract])}")
        found: type[Any] = cls
        return found


def load(where: str) -> Any:
    """Import and return the object ``"package.module:name"``.

    Raises:
        ModuleNotFoundError: a library that the module needs is not installed.
    """
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def split(name: str) -> tuple[Path | None, str]:
    """Split ``path/to/file.py:Class`` into path and class.

    The class is empty for a path alone. Any other name gives ``(None, name)``.
    """
    path, _, class_name = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    return (Path(path), class_name) if path.endswith(".py") else (None, name)


def absolute(name: str) -> str:
    """Return a name with an absolute path, which is valid in any folder."""
    path, class_name = split(name)
    if path is None:
        return name
    return f"{path.resolve()}:{class_name}" if class_name else str(path.resolve())


def read_module(path: Path, what: str) -> ModuleType:
    """Run a user's Python file and return it as a module.

    An unchanged file is not run again, so that its classes stay the same objects.

    Args:
        path: Path of the file.
        what: Word for the expected plug-in in messages.

    Raises:
        PluginError: the file does not exist, or fails; the message has the line.
    """
    if not path.is_file():
        raise PluginError(f"there is no file '{path}' to read the {what} from")
    place, written = path.resolve(), path.stat()
    # Files of the same name in two folders need two modules.
    name = f"{OWN_MODULES}{path.stem}_{hashlib.sha256(bytes(place)).hexdigest()[:8]}"
    version = (written.st_mtime_ns, written.st_size)
    if name in _READ and _READ[name][0] == version:
        return _READ[name][1]
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anything that a user's file may do
        raise PluginError(f"'{path}' cannot be imported: {described(error, path)}") from error
    _READ[name] = version, module
    return module


def described(error: BaseException, path: Path | None) -> str:
    """Return an error on one line, with its line in a user's file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path is not None and Path(frame.filename).resolve() == path.resolve()
    ]
    if isinstance(error, SyntaxError):  # names its line itself
        lines = []
    at = f" (line {lines[-1]} of {path})" if lines else ""
    return f"{' '.join(f'{type(error).__name__}: {error}'.split())}{at}"


def described_in(error: BaseException, cls: type) -> str:
    """Return an error on one line, with its line in the file of a class."""
    return described(error, Path(inspect.getfile(cls)))


def own_failure(plugin: object, error: BaseException, what: str = "") -> str:
    """Return a failure of a class from a user's file on one line, with its file and line.

    Args:
        plugin: The class or an instance of it; for a class that is not from a file the result
            is ``""``.
        error: Failure.
        what: What failed, such as ``"cannot be built"``.
    """
    if (path := own_file(plugin)) is None:
        return ""
    subject = f"{own_name(plugin)} {what}".rstrip()
    return f"{subject}: {described(error, path)}"


def failure_in_own_file(error: BaseException) -> str:
    """Return a failure on one line, with the last line of its traceback in a user's file.

    It is ``""`` if no user's file is in the traceback. Properties and generators fail far from the
    call that a base class makes.
    """
    own = {module.__file__ for _, module in list(_READ.values())}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in own:
            return f"{frame.filename}: {described(error, Path(frame.filename))}"
    return ""


def own_file(plugin: object) -> Path | None:
    """Return the user's file that a class is from; None for any other class."""
    cls = plugin if inspect.isclass(plugin) else type(plugin)
    # A class that another process sent by value has no module here.
    module = sys.modules.get(cls.__module__) if cls.__module__.startswith(OWN_MODULES) else None
    return None if module is None or module.__file__ is None else Path(module.__file__)


def own_line(cls: type, attribute: str) -> str:
    """Return where a user's file sets an attribute of a class, such as ``" (line 3 of own.py)"``.

    It is ``""`` for a class that is not from a file, and for an attribute that its body lacks.
    """
    owner = next((each for each in cls.__mro__ if attribute in vars(each)), cls)
    if (path := own_file(owner)) is None:
        return ""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ClassDef) or node.name != owner.__name__:
            continue
        for part in node.body:
            targets = part.targets if isinstance(part, ast.Assign) else [part]
            if attribute in [_name_of(each) for each in targets]:
                return f" (line {part.lineno} of {path})"
    return ""


def _name_of(node: ast.AST) -> str:
    """Return the name that a part of a class body defines or is."""
    if isinstance(node, ast.AnnAssign):
        node = node.target
    if isinstance(node, ast.Name):
        return node.id
    return node.name if isinstance(node, ast.FunctionDef) else ""


def own_name(plugin: object) -> str:
    """Return the name of a class for messages, ``path/to/file.py:Class`` if it is from a file."""
    cls = plugin if inspect.isclass(plugin) else type(plugin)
    path = own_file(cls)
    return cls.__name__ if path is None else f"{path}:{cls.__name__}"


def _derives(value: Any, base: type[Any]) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and value is not base
