"""Complete settings of published systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from esm_host.errors import UsageError
from esm_protos.messages import RunOrder
from esm_protos.nearest import unknown


@dataclass(frozen=True)
class Preset:
    """Differences from the default settings.

    Attributes:
        settings: Campaign settings by their names in
            :class:`~esm_host.extension.settings.Settings`.
        spec: Measurement settings by their names in :class:`~esm_protos.messages.MeasureSpec`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)


PRESETS = {
    "esm": Preset(
        {
            "predictor": "mlp-esm",
            "encoding": "fcc",
            "sampling": "balanced",
            "extension": "balanced",
            "weights": "equal",
            "initial": 300,
            "step": 100,
            "verify": 0,
            "raw": True,
        },
        {
            "run_order": RunOrder.SEQUENTIAL,
            "runs": 150,
            "precision": 0.0,
            "trim": 0.2,
            "references": False,
            "long_visits": 0,
        },
    )
}


def preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        UsageError: the preset does not exist.
    """
    if name not in PRESETS:
        raise UsageError(unknown("preset", name, PRESETS))
    return PRESETS[name]
