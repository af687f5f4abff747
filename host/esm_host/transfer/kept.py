"""File of a few-shot method: the latencies of its sources, and its trained arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.atomic import write_bytes
from esm_host.errors import DatasetError
from esm_host.transfer import make_method, method_of
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.source import Source
from esm_models.space import SearchSpace

_TRAINED = "trained."


def reduced(
    name: str, space: SearchSpace, sources: Sequence[Source], seed: int
) -> tuple[Source, ...]:
    """Return the part of the sources that a method learns from, as sources of this space.

    Sources may be of other settings of the space. Sources with the same architectures keep the same
    ones.

    Args:
        name: Name of the method.
        space: Search space.
        sources: Sources to reduce.
        seed: Random seed of the choice of architectures, if a source has more than the method
            takes.
    """
    most = method_of(name).per_source
    rows: dict[int, NDArray[np.intp]] = {}
    codes: dict[int, NDArray[np.int16]] = {}
    found = []
    for source in sources:
        key = id(source.codes)
        if key not in rows:
            count = len(source) if most is None else min(most, len(source))
            drawn = np.random.default_rng(seed).permutation(len(source))[:count]
            rows[key] = np.sort(drawn)
            codes[key] = source.codes[rows[key]]
        latency_ms = source.latency_ms[rows[key]]
        found.append(replace(source, space=space, codes=codes[key], latency_ms=latency_ms))
    return tuple(found)


@dataclass(eq=False)
class KeptMethod:
    """Few-shot method and its sources in a file, trained at the first use.

    Attributes:
        path: The file.
        space: Search space.
        name: Name of the method (:data:`esm_host.transfer.METHODS`).
        options: Options of the method that differ from the defaults.
        seed: Random seed.
    """

    path: Path
    space: SearchSpace
    name: str
    options: Mapping[str, Any]
    seed: int
    _learnt: FewShotPredictor | None = None

    def keep(self, sources: Sequence[Source]) -> None:
        """Write the sources, without any trained arrays."""
        _write(self.path, sources, {})

    def sources(self) -> Sequence[Source]:
        """Return the sources.

        Raises:
            DatasetError: the file is missing or damaged.
        """
        return _read(self.path, self.space)[0]

    def learnt(self) -> FewShotPredictor:
        """Return the method with its sources learnt.

        Raises:
            DatasetError: the file is missing or damaged.
        """
        if self._learnt is None:
            sources, trained = _read(self.path, self.space)
            method = make_method(self.name, self.seed, **self.options)
            try:
                method.learn(sources, trained or None)
            except (KeyError, RuntimeError) as error:
                raise DatasetError(
                    f"{self.path} is not of this campaign ({error}): restore it from a copy"
                ) from error
            if not trained and (learnt := method.trained()):
                _write(self.path, sources, learnt)
            self._learnt = method
        return self._learnt


def _write(
    path: Path, sources: Sequence[Source], trained: Mapping[str, NDArray[np.generic]]
) -> None:
    """Write an ``.npz`` file without pickled objects."""
    codes = {id(source.codes): source.codes for source in sources}
    places = {key: number for number, key in enumerate(codes)}
    arrays: dict[str, NDArray[Any]] = {
        "names": np.array([source.name for source in sources], dtype=np.str_),
        "of": np.array([places[id(source.codes)] for source in sources]),
        **{f"codes.{places[key]}": each for key, each in codes.items()},
        **{f"latency_ms.{number}": s.latency_ms for number, s in enumerate(sources)},
        **{f"{_TRAINED}{name}": each for name, each in trained.items()},
    }
    file = BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_bytes(path, file.getvalue())


def _read(path: Path, space: SearchSpace) -> tuple[list[Source], dict[str, NDArray[np.generic]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        names, of = arrays["names"].tolist(), arrays["of"].tolist()
        codes = [arrays[f"codes.{number}"] for number in range(max(of) + 1)]
        sources = [
            Source(name, space, codes[place], arrays[f"latency_ms.{number}"])
            for number, (name, place) in enumerate(zip(names, of, strict=True))
        ]
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is damaged ({error}): restore it from a copy") from error
    trained = {
        name.removeprefix(_TRAINED): array
        for name, array in arrays.items()
        if name.startswith(_TRAINED)
    }
    return sources, trained
