"""The search spaces that come with the project, and the way to a user's own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from esm_models.errors import InvalidSpaceError, UnknownSpaceError
from esm_models.space import SearchSpace

SPACES = {
    "resnet": "esm_models.spaces.resnet:ResNetSpace",
    "mobilenetv3": "esm_models.spaces.mobilenetv3:MobileNetV3Space",
    "densenet": "esm_models.spaces.densenet:DenseNetSpace",
    "nasbench201": "esm_models.spaces.nasbench201:NASBench201Space",
    "fbnet": "esm_models.spaces.fbnet:FBNetSpace",
    "ofa": "esm_models.spaces.ofa:OFASpace",
}
"""Name -> where its class is."""

OWN_SPACES = "esm_user_space_"
"""What names of modules of users' own spaces begin with; they can be imported nowhere else."""


def load_space(name: str, **settings: Any) -> SearchSpace:
    """A search space by name, or ``path/to/file.py:Class`` for one's own.

    Args:
        settings: ``resolution``, ``width_mult``, ``batch`` and ``dtype`` of :class:`SearchSpace`.

    Raises:
        UnknownSpaceError: no such name, file or class.
        InvalidSpaceError: the class cannot be built with these settings.
    """
    path, _, class_name = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    if path.endswith(".py"):
        cls = _class_from_file(Path(path), class_name)
    elif name in SPACES:
        module_name, _, class_name = SPACES[name].partition(":")
        cls = getattr(importlib.import_module(module_name), class_name)
    else:
        near = difflib.get_close_matches(name, SPACES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UnknownSpaceError(
            f"unknown search space '{name}': {hint}choose {', '.join(SPACES)}, or give your own "
            "as path/to/file.py:Class"
        )
    try:
        space: SearchSpace = cls(**settings)
        if path.endswith(".py"):  # mistakes show now, not in the middle of a campaign
            for architecture in (*space.extremes(), *space.uniform()):
                space.build(architecture)
    except InvalidSpaceError:
        raise
    except Exception as error:  # a user's constructor may fail in any way
        text = f"{name} cannot be built: {_told(error, path)}"
        raise InvalidSpaceError(text) from error
    return space


def _told(error: Exception, path: str) -> str:
    """Return an error with the line of a user's file that it comes from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path and Path(frame.filename).resolve() == Path(path).resolve()
    ]
    if isinstance(error, SyntaxError):  # says its own
        lines = []
    at = f" (line {lines[-1]} of {path})" if lines else ""
    return f"{type(error).__name__}: {error}{at}"


def _class_from_file(path: Path, class_name: str) -> type[SearchSpace]:
    if not path.is_file():
        raise UnknownSpaceError(f"there is no file '{path}' to read the search space from")
    spec = importlib.util.spec_from_file_location(f"{OWN_SPACES}{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UnknownSpaceError(
            f"'{path}' cannot be imported: {_told(error, str(path))}"
        ) from error
    cls = getattr(module, class_name, None) if class_name else None
    if not (isinstance(cls, type) and issubclass(cls, SearchSpace)):
        found = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, SearchSpace)
            and value is not SearchSpace
        ]
        if found and not class_name:
            which = " or ".join(f"{path}:{key}" for key in found)
            raise UnknownSpaceError(f"'{path}' is a file, say which class of it: {which}")
        what = f" '{class_name}'" if class_name else ""
        raise UnknownSpaceError(
            f"'{path}' has no search space class{what}"
            + (f": it has {', '.join(found)}" if found else ": derive one from SearchSpace")
        )
    missing = [part for part in ("name", "depths", "features") if not hasattr(cls, part)]
    if missing:
        raise UnknownSpaceError(f"{class_name} in '{path}' must set {', '.join(missing)}")
    return cls
