"""A block as the agent has it: its models lie in files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from esm_protos.messages import Case, MeasureSpec


@dataclass(frozen=True)
class UploadedModel:
    """One model of a block.

    Attributes:
        path: of the ONNX file; its external data lies beside it.
        case: how it is run; of its inputs, the file is at ``inputs``.
        external: locations of external data that came with it.
    """

    model_id: str
    path: Path
    case: Case = field(default_factory=Case)
    inputs: Path | None = None
    external: frozenset[str] = frozenset()


@dataclass(frozen=True)
class UploadedBlock:
    """What is measured together.

    Attributes:
        lease_id: in whose turn.
        peak_memory: tell how much memory every model takes: they are loaded one by one.
        profile_runs: profile every model for so many runs, after all of them were timed.
    """

    block_id: str
    spec: MeasureSpec
    models: tuple[UploadedModel, ...]
    lease_id: str = ""
    peak_memory: bool = False
    profile_runs: int = 0
