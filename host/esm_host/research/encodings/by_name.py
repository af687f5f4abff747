"""Encodings of architectures by name, concatenated if there are several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.plugins import load_class
from esm_host.research.encodings.zero_cost import AnalyticProxies, Concatenated, Supplement
from esm_host.transfer import encoding_names
from esm_models.space import SearchSpace

_LEARNT = {
    "arch2vec": "esm_host.research.encodings.arch2vec:Arch2VecEncoder",
    "cate": "esm_host.research.encodings.cate:CATEEncoder",
}


def check_encodings(names: str) -> None:
    """Check that the libraries of these encodings are installed.

    Args:
        names: Names from :func:`~esm_host.transfer.encoding_names`, or ``""``.

    Raises:
        UsageError: a library is not installed.
    """
    for name in names.split("+"):
        if name in _LEARNT:
            _class(name)


def supplement_of(
    names: str,
    space: SearchSpace,
    trained: Mapping[str, NDArray[np.generic]] | None = None,
) -> Concatenated | None:
    """Return the encodings of a space, or None without names.

    Args:
        names: Names joined by ``+``. Learned encodings are trained now, which takes about a
            minute.
        space: Search space.
        trained: Weights from :func:`supplement_weights`, instead of training; None trains.

    Raises:
        UsageError: an encoding does not exist, or its library is not installed.
    """
    if not names:
        return None
    parts: list[Supplement] = []
    for name in encoding_names(names).split("+"):
        if name == "zcp":
            parts.append(AnalyticProxies(space))
        elif trained is None:
            parts.append(_class(name)(space).fit())
        else:
            parts.append(_class(name)(space).restore(trained))
    return Concatenated(*parts)


def supplement_weights(supplement: Supplement) -> dict[str, NDArray[Any]]:
    """Return the weights of the learned encodings, by name."""
    arrays: dict[str, NDArray[Any]] = {}
    for part in getattr(supplement, "parts", ()):
        if hasattr(part, "trained"):
            arrays |= part.trained()
    return arrays


def _class(name: str) -> Any:
    return load_class(_LEARNT[name], f"encoding '{name}'")
