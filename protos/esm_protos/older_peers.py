"""Execution providers and sessions as older hosts and agents, and files of theirs, know them.

They have a field for each of two options, no table of providers, and no settings of sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from esm_protos.providers import ProviderInfo, ProviderOption
from esm_protos.session_settings import SessionSettings

OPTION_FIELDS = ("tf32", "cuda_graph")
"""Options that have a field of their own in specs, true for the value ``1``."""
NAMES = (*OPTION_FIELDS, "gpu")
"""Names of all settings and facts that depend on the provider."""


def provider_table(names: Iterable[str], gpus: Iterable[str]) -> tuple[ProviderInfo, ...]:
    """Return what an agent without a table offers under these names.

    Args:
        gpus: names of the device's GPUs.
    """
    options = tuple(ProviderOption(name, "bool", "0") for name in OPTION_FIELDS)
    cuda = ProviderInfo(
        "cuda", "CUDAExecutionProvider", options, {"gpu": ", ".join(gpus)}, may_fall_back=True
    )
    return tuple(cuda if name == cuda.name else ProviderInfo(name) for name in names)


def spec_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec's plain values, with its provider's options in one place and all settings."""
    fields = {name: value for name, value in data.items() if name not in OPTION_FIELDS}
    own = {name: "1" for name in OPTION_FIELDS if data.get(name)}
    fields = {**asdict(SessionSettings()), **fields}
    return {**fields, "provider_options": {**own, **data.get("provider_options", {})}}
