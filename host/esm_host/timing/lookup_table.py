"""Latencies of a space's parts, each timed alone, and the file that keeps them (docs/lookup.md)."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding import Encoder
from esm_host.encoding.cost import PartsEncoder
from esm_host.errors import DatasetError, DeviceError, MismatchError, UsageError
from esm_host.limits import check_models, check_spec
from esm_host.transport.base import OnProgress, Profiler, ignore
from esm_models.parts import Part
from esm_models.space import SearchSpace
from esm_protos.messages import Block, DeviceInfo, MeasureSpec, Model, Protocol
from esm_protos.statistics import estimate_block

SCHEMA_VERSION = 1
KIND = "lookup-table"
BLOCK_PARTS = 20


@dataclass(frozen=True)
class PartTime:
    """How long a part takes alone.

    Attributes:
        latency_ms: at the pace that the references had over all blocks.
        interval: half-width of the 95 % interval within its block, as a share; infinite with too
            few runs to tell.
        runs: counted ones.
    """

    part: Part
    latency_ms: float
    interval: float
    runs: int


def time_parts(
    profiler: Profiler,
    parts: Sequence[Part],
    spec: MeasureSpec,
    on_progress: OnProgress = ignore,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> list[PartTime]:
    """Times every part as a graph without weights, in blocks of :data:`BLOCK_PARTS`.

    Two parts, those a third and two thirds up the order of work, are in every block: what they
    are faster or slower than on average is divided out of the others.

    Args:
        on_progress: of the block that is being measured.
        on_block: told how many parts are done, of how many.

    Returns:
        in the order of ``parts``.

    Raises:
        UsageError: the device cannot do what is asked.
        DeviceError: it is gone or refuses, or a part fails.
    """
    models = [Model(part.key, part.build()) for part in parts]
    info = profiler.device_info()
    check_spec(info, spec)
    by_work = sorted(range(len(parts)), key=lambda number: (parts[number].flops, number))
    references = sorted({by_work[len(parts) // 3], by_work[2 * len(parts) // 3]})
    others = [number for number in range(len(parts)) if number not in references]
    blocks = [references + others[i : i + BLOCK_PARTS] for i in range(0, len(others), BLOCK_PARTS)]
    latency_ms = np.full((len(blocks) or 1, len(parts)), np.nan)
    interval, runs = np.full(latency_ms.shape, np.nan), np.zeros(latency_ms.shape, dtype=int)
    for row, numbers in enumerate(blocks or [references]):
        chosen = [models[number] for number in numbers]
        check_models(info.limits, chosen)
        result = profiler.measure(Block(uuid.uuid4().hex, spec, tuple(chosen)), on_progress)
        for number, measurement in zip(numbers, result.measurements, strict=True):
            if (failure := measurement.failure) is not None:
                raise DeviceError(
                    f"part {parts[number].name} failed with {failure.kind.value}: {failure.message}"
                )
            runs[row, number] = len(measurement.latency_ns)
        estimates = estimate_block(
            [m.latency_ns for m in result.measurements],
            [m.start_ns for m in result.measurements],
            spec.runs_per_visit,
            spec.trim,
            common_pace=spec.protocol is Protocol.INTERLEAVED,
        ).models
        latency_ms[row, numbers] = [estimate.latency_ns / 1e6 for estimate in estimates]
        interval[row, numbers] = [estimate.interval for estimate in estimates]
        on_block(len(references) + len(others[: (row + 1) * BLOCK_PARTS]), len(parts))
    logs = np.log(latency_ms[:, references])
    pace = np.exp((logs - logs.mean(axis=0)).mean(axis=1))
    means = np.nanmean(latency_ms / pace[:, None], axis=0)
    return [
        PartTime(
            part,
            float(means[number]),
            float(np.nanmax(interval[:, number])),
            int(runs[:, number].sum()),
        )
        for number, part in enumerate(parts)
    ]


def table_json(
    space: SearchSpace,
    device: str,
    info: DeviceInfo,
    spec: MeasureSpec,
    times: Sequence[PartTime],
) -> dict[str, Any]:
    """What ``esm-host lookup --json`` writes; docs/lookup.md describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "context": {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": version("esm-profiler"),
            "space": space.settings(),
            "device": {"name": device, **info.identity(spec.provider)},
            "spec": spec.to_json(),
        },
        "parts": [
            {
                "key": time.part.key,
                "name": time.part.name,
                "option": time.part.option or None,
                "inputs": [list(shape) for shape in time.part.inputs],
                "latency_ms": time.latency_ms,
                "interval_percent": 100 * time.interval if math.isfinite(time.interval) else None,
                "runs": time.runs,
                "operators": len(time.part.operators),
                "mflops": time.part.flops / 1e6,
            }
            for time in times
        ],
    }


def load_lookup_table(path: str | Path, encoder: Encoder) -> NDArray[np.float64]:
    """Milliseconds of each column of the encoding ``parts``, ``(len(encoder),)``, for
    :class:`esm_host.predictors.lookup.LookupBiasPredictor`.

    Raises:
        UsageError: there is no such file, or the encoder is another.
        DatasetError: it is something else, or damaged.
        MismatchError: it is of another space, of other settings, or lacks parts.
    """
    path = Path(path)
    if not isinstance(encoder, PartsEncoder):
        raise UsageError(
            f"a lookup table goes with the encoding 'parts', not '{encoder.name}': "
            "make_encoder('parts', space)"
        )
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON ({error}): measure again with --json") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise DatasetError(
            f"{path} is no lookup table: make one with esm-host lookup --json {path}"
        )
    if data.get("schema_version") != SCHEMA_VERSION:
        raise DatasetError(
            f"{path} has schema version {data.get('schema_version')}; this program reads version "
            f"{SCHEMA_VERSION}: measure again with esm-host lookup"
        )
    try:
        settings = data["context"]["space"]
        table = {str(entry["key"]): float(entry["latency_ms"]) for entry in data["parts"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} lacks what a lookup table has ({type(error).__name__}: {error}): measure "
            "again with esm-host lookup"
        ) from error
    wanted = encoder.space.settings()
    if settings != wanted:
        raise MismatchError(
            f"{path} is of {_shown(settings)}, the encoder's space is {_shown(wanted)}: measure "
            "a table of that with esm-host lookup"
        )
    missing = [part.name for part in encoder.parts if part.key not in table]
    if missing:
        raise MismatchError(
            f"{path} lacks {len(missing)} parts of the space, such as {missing[0]}: the space has "
            "changed, measure again with esm-host lookup"
        )
    return np.array([table[part.key] for part in encoder.parts])


def _shown(settings: dict[str, Any]) -> str:
    name, *rest = (
        f"{value}" if key == "name" else f"{key} {value}" for key, value in settings.items()
    )
    return f"{name} ({', '.join(rest)})"
