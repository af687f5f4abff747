"""Types of arguments, checked by their annotations where a program's values enter.

The annotations are the only description of a function's arguments. Entries of lists, tuples and
dictionaries are checked too.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from os import PathLike
from typing import Any, ParamSpec, TypeVar, get_origin

from esm_host.arguments import argument
from esm_host.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "text",
    "Path": "a path",
    "PathLike": "a path",
    "Callable": "a function",
    "DeviceTimes": "a function",
    "Draw": "a function",
    "OnProgress": "a function",
    "Mapping": "a dictionary",
    "Architecture": "an architecture",
    "Model": "a model (path, bytes, ModelProto or torch module)",
    "Inputs": "values by input name or paths of files with values",
    "Timing": "a timing or the path of its file",
    "Run": "a campaign",
    "TimingFile": "a timing",
    "SearchRecord": "a search",
    "Study": "a study",
    "Comparison": "a comparison",
    "SearchSpace": 'a search space such as esm_host.load_space("resnet")',
}
_SEVERAL = {
    "int": "a list of whole numbers",
    "float": "a list of numbers",
    "str": "a list of texts",
    "Architecture": "a list of architectures, also of a single one",
    "Model": "a list of models",
    "Timing": "a list of timings",
}
_LISTS = ("Sequence", "Iterable", "Collection", "tuple")
_ANYTHING = ("Any", "ArrayLike")


class WrongTypeError(UsageError, TypeError):
    """Error of an argument of the wrong type."""


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a function by its annotations; a decorator.

    Keywords are checked by their ``TypedDict``; the function refuses those that it does not know.

    Raises:
        WrongTypeError: an argument has another type; the message says what the function takes.
    """
    signature = inspect.signature(function)
    names = function.__globals__

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is not parameter.VAR_KEYWORD:
                _check(name, value, parameter.annotation, names)
                continue
            unpacked = parameter.annotation.removeprefix("Unpack[").removesuffix("]")
            known = names[unpacked].__annotations__
            for key in value.keys() & known.keys():
                _check(key, value[key], known[key].__forward_arg__, names)
        return function(*args, **kwargs)

    return checked


def check_fields(settings: object) -> None:
    """Check the fields of a dataclass by their annotations.

    Raises:
        WrongTypeError: a field has another type; the message says what it takes.
    """
    for cls in type(settings).__mro__:
        names = vars(sys.modules[cls.__module__])
        for name, annotation in inspect.get_annotations(cls).items():
            _check(name, getattr(settings, name), annotation, names)


def _check(name: str, value: Any, annotation: object, names: Mapping[str, Any]) -> None:
    if not isinstance(annotation, str) or _takes(_parsed(annotation), value, names):
        return
    kind, wanted = type(value), _parsed(annotation)
    given = f" {value!r:.80}" if kind.__module__ == "builtins" else ""
    wrong = f"is of type {kind.__name__}"
    if kind in (list, tuple, dict) and _takes(wanted, kind(), names):
        wrong = "has an entry of another type"
    raise WrongTypeError(f"{argument(name)}{given} {wrong}: give {_words(wanted)}")


@functools.cache
def _parsed(annotation: str) -> ast.expr:
    return ast.parse(annotation, mode="eval").body


def _takes(wanted: ast.expr, value: Any, names: Mapping[str, Any]) -> bool:
    """Return whether a value has the type of an annotation."""
    if isinstance(wanted, ast.BinOp):
        return _takes(wanted.left, value, names) or _takes(wanted.right, value, names)
    if isinstance(wanted, ast.Constant):
        return value is None
    if isinstance(wanted, ast.Subscript):
        return _takes_generic(wanted, value, names)
    match name := _name(wanted):
        case "int":
            return isinstance(value, Integral)
        case "float":
            return isinstance(value, Real)
        case "bool":  # numpy's is no subclass of bool
            return type(value).__name__ in ("bool", "bool_")
        case "Path":
            return isinstance(value, PathLike)
    if name in _ANYTHING:
        return True
    kind = names.get(name)
    if isinstance(kind, str):  # an alias
        return _takes(_parsed(kind), value, names)
    if getattr(kind, "_is_protocol", False):
        return callable(value) or "__call__" not in vars(kind)
    if get_origin(kind) is Callable:
        return callable(value)
    if inspect.isclass(kind):
        return isinstance(value, kind)
    # A class that only type checkers import is known by its name.
    return kind is not None or any(cls.__name__ == name for cls in type(value).__mro__)


def _takes_generic(wanted: ast.Subscript, value: Any, names: Mapping[str, Any]) -> bool:
    name = _name(wanted.value)
    if name == "PathLike":
        return isinstance(value, PathLike)
    if name == "Callable":
        return callable(value)
    inner = wanted.slice.elts if isinstance(wanted.slice, ast.Tuple) else [wanted.slice]
    if name == "Mapping":
        return isinstance(value, Mapping) and all(
            _takes(inner[0], key, names) and _takes(inner[1], each, names)
            for key, each in value.items()
        )
    if name in _LISTS:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return False
        # ``SearchSpace.read`` checks architectures, and only lists can be read twice.
        if _first(inner[0]) == "Architecture" or not isinstance(value, list | tuple):
            return True
        return all(_takes(inner[0], each, names) for each in value)
    return True


def _first(wanted: ast.expr) -> str:
    """Return the first name of an annotation of alternatives."""
    return _first(wanted.left) if isinstance(wanted, ast.BinOp) else _name(wanted)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _words(wanted: ast.expr) -> str:
    """Return what an annotation takes, in words."""
    words = list(dict.fromkeys(_alternatives(wanted)))
    if "a path" in words and "text" in words:
        words.remove("text")
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _alternatives(wanted: ast.expr) -> Iterator[str]:
    if isinstance(wanted, ast.BinOp):
        yield from _alternatives(wanted.left)
        yield from _alternatives(wanted.right)
    elif isinstance(wanted, ast.Constant):
        yield "None"
    elif isinstance(wanted, ast.Subscript) and _name(wanted.value) in _LISTS:
        inner = wanted.slice.elts[0] if isinstance(wanted.slice, ast.Tuple) else wanted.slice
        yield _SEVERAL.get(_first(inner)) or f"a list, each entry {_words(inner)}"
    elif isinstance(wanted, ast.Subscript) and _name(wanted.value) == "Mapping":
        assert isinstance(wanted.slice, ast.Tuple)
        inner = wanted.slice.elts[1]
        anything = _name(inner) in ("Any", "object")
        yield f"a dictionary from names to {'values' if anything else _words(inner)}"
    else:
        name = _name(wanted.value if isinstance(wanted, ast.Subscript) else wanted)
        yield _WORDS.get(name, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
