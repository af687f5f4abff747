"""Data of a study: public latency tables and campaigns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esm_host.campaign.run import load_run
from esm_host.dataset.benchmarks import read_benchmark
from esm_host.errors import UsageError
from esm_host.research.study.settings import DataSource, StudySettings
from esm_host.sampling.bins import DepthBins
from esm_models.space import Codes, SearchSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Architectures of one space and their latencies on devices.

    Attributes:
        name: Name of the data set.
        space: Search space.
        codes: Architectures, ``(n, *space.code_shape)``.
        latency_ms: Latencies by device, ms, ``(n,)``; NaN where one is missing.
        weights: Weight of each architecture in training, ``(n,)``.
        sizes: Sizes of the training sets.
        lookup_table: File of a lookup table; None if there is none.
    """

    name: str
    space: SearchSpace
    codes: Codes
    latency_ms: Mapping[str, Floats]
    weights: Floats
    sizes: tuple[int, ...]
    lookup_table: Path | None = None

    @property
    def depth(self) -> NDArray[np.int64]:
        """Number of blocks of each architecture, ``(n,)``."""
        depth: NDArray[np.int64] = (self.space.blocks_of(self.codes) >= 0).sum(axis=(1, 2))
        return depth

    @property
    def bins(self) -> DepthBins:
        """Depth bins, as in a campaign."""
        return DepthBins.by_default(self.space.min_depth, self.space.max_depth)


def read_data(settings: StudySettings) -> list[DataSet]:
    """Read all data of a study.

    Raises:
        UsageError: there is no such file, folder or device, there are too few latencies, or two
            data sets have one name.
        DatasetError: one of them is damaged.
    """
    data = [_read(source, settings.sizes) for source in settings.data]
    seen: set[tuple[str, str]] = set()
    for data_set in data:
        for device, latency_ms in data_set.latency_ms.items():
            if (data_set.name, device) in seen:
                raise UsageError(
                    f"'{data_set.name}' on '{device}' is given twice: give one of the two [[data]] "
                    'another name = "..."'
                )
            seen.add((data_set.name, device))
            there, largest = int(np.isfinite(latency_ms).sum()), max(data_set.sizes)
            test = 2 if settings.test is None else settings.test
            if there < largest + test:
                raise UsageError(
                    f"'{data_set.name}' has {there} latencies of '{device}', but sizes up to "
                    f"{largest} and {test} test samples need {largest + test}: lower either"
                )
    return data


def _read(source: DataSource, sizes: Sequence[int]) -> DataSet:
    sizes = tuple(source.sizes or sizes)
    if not source.is_run:
        table = read_benchmark(source.path)
        devices = source.devices or tuple(table.latency_ms)
        return DataSet(
            source.name or table.name,
            table.space,
            table.codes,
            {device: table.latency_of(device) for device in devices},
            np.ones(len(table)),
            sizes,
            source.lookup_table,
        )
    run = load_run(source.path)
    settings = run.settings
    measured = run.of("latency").dataset().only(settings.trusted_verdicts)
    return DataSet(
        source.name or run.space.name,
        run.space,
        run.space.encode(measured.architectures),
        {source.devices[0] if source.devices else settings.device: measured.latency_ms},
        measured.weights() if settings.weights == "interval" else np.ones(len(measured)),
        sizes,
        source.lookup_table,
    )


def find_rows(codes: Codes, wanted: Codes) -> NDArray[np.intp]:
    """Return the row of each wanted architecture, ``(len(wanted),)``; -1 if missing."""
    rows = {code.tobytes(): row for row, code in enumerate(codes)}
    return np.array([rows.get(code.tobytes(), -1) for code in wanted], dtype=np.intp)
