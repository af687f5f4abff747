"""Cache of models that execution providers have compiled, for later loads of the same model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from esm_agent.measure.block import UploadedModel

log = logging.getLogger(__name__)

VARIABLE = "ESM_AGENT_COMPILED_CACHE"
"""Environment variable with the folder of the cache; the measuring process inherits it."""
_MAX_BYTES = 4 << 30
_MODEL, _NODES = "model.onnx", "nodes.json"
_FORMAT = 1


class Compiled(NamedTuple):
    """Compiled model in the cache.

    Attributes:
        path: Its file.
        ran_on: Number of nodes of the original model on each provider.
    """

    path: Path
    ran_on: tuple[tuple[str, int], ...]


class CompiledCache:
    """Folder of compiled models by key; if it is full, it drops the least recently used ones.

    Args:
        folder: Path of the folder; it is created for this user only.
        max_bytes: Size of all models.
    """

    def __init__(self, folder: Path, max_bytes: int = _MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def find(self, key: str) -> Compiled | None:
        """Return the model of a key; None if there is none."""
        entry = self._folder / key
        try:
            nodes = json.loads((entry / _NODES).read_text())
            os.utime(entry)
        except (OSError, ValueError):
            return None
        return Compiled(entry / _MODEL, tuple((name, count) for name, count in nodes))

    @contextmanager
    def writing(self) -> Iterator[Path | None]:
        """Yield the path for a new compiled model, which is dropped unless :meth:`keep` keeps it.

        Yields:
            The path; None if the folder cannot be written to.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = tempfile.mkdtemp(prefix="new-", dir=self._folder)
        except OSError as error:
            log.warning("no compiled model is kept: %s", error)
            yield None
            return
        try:
            yield Path(new, _MODEL)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def keep(self, key: str, path: Path, ran_on: tuple[tuple[str, int], ...]) -> None:
        """Keep the compiled model that was written to ``path``."""
        with suppress(OSError):  # the disk is full, or another agent has kept the same one
            (path.parent / _NODES).write_text(json.dumps(ran_on))
            os.rename(path.parent, self._folder / key)
            self._trim()

    def drop(self, key: str) -> None:
        """Drop the model of a key, which its provider cannot read."""
        log.warning(
            "deleted a compiled model that its provider cannot read; the provider keeps none until "
            "the measuring process restarts"
        )
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def _trim(self) -> None:
        entries = [each for each in self._folder.iterdir() if (each / _NODES).exists()]
        left = self._max_bytes
        for entry in sorted(entries, key=lambda each: each.stat().st_mtime, reverse=True):
            left -= sum(file.stat().st_size for file in entry.iterdir())
            if left < 0:
                shutil.rmtree(entry, ignore_errors=True)


def compiled_cache() -> CompiledCache | None:
    """Return the cache that the environment names; None if it names none."""
    folder = os.environ.get(VARIABLE)
    return CompiledCache(Path(folder)) if folder else None


def key_of(model: UploadedModel, *settings: Any) -> str:
    """Return a key of a model's content and of all settings that decide what is compiled.

    Args:
        model: Model, whose external data counts too.
        settings: Values with a distinct ``repr``.
    """
    digest = hashlib.sha256(repr((_FORMAT, settings)).encode())
    for place in ("", *sorted(model.external)):
        path = model.path.parent / place if place else model.path
        with path.open("rb") as file:
            digest.update(place.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
