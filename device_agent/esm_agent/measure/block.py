"""Block with its models as files on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from esm_protos.messages import Case, MeasureSpec


@dataclass(frozen=True)
class UploadedModel:
    """Model of a block.

    Attributes:
        model_id: Id of the model.
        path: Path of the ONNX file; its external data is in the same folder.
        case: Settings of its runs.
        inputs: File with values of its inputs; None if all are drawn.
        external: Locations of the external data sent with it.
    """

    model_id: str
    path: Path
    case: Case = field(default_factory=Case)
    inputs: Path | None = None
    external: frozenset[str] = frozenset()


@dataclass(frozen=True)
class UploadedBlock:
    """Models that are measured together.

    Attributes:
        block_id: Id of the block.
        spec: Settings of the measurement.
        models: Models of the block.
        lease_id: Id of the lease in whose turn it is measured.
        peak_memory: Whether to measure the peak memory of every model, which loads them one by
            one.
        profile_runs: Number of profiled runs of every model, after all models are timed.
        energy_s: Time for measuring the energy of each model, after that, seconds; 0 for none.
        raw: Whether a precision is that of latencies in the block, not at the usual pace.
    """

    block_id: str
    spec: MeasureSpec
    models: tuple[UploadedModel, ...]
    lease_id: str = ""
    peak_memory: bool = False
    profile_runs: int = 0
    energy_s: float = 0.0
    raw: bool = False
