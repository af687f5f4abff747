"""Adaptation of a proxy's linear predictor by a scale and sparse corrections."""

from __future__ import annotations

import warnings
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import lars_path

from esm_protos.nearest import unknown

Floats = NDArray[np.float64]

VALIDATION = 20
NORMS = ("l1", "l2")
_PENALTIES = np.logspace(0, -4, 25)
"""Penalties, relative to the smallest one without any correction."""


class AdaProxy:
    """Adaptation of a linear predictor, ``latency = weights . features`` (Lu et al. 2021, eq. 3).

    Its weights are multiplied by ``alpha + b``, feature by feature. ``alpha`` is one scale for all;
    corrections ``b`` are kept sparse by a penalty lambda,

        min over alpha, b:  mean of squared errors + lambda |b|.

    The paper writes a norm of ``b`` and calls it sparse: the sum of absolute values. The authors'
    program has the Euclidean norm and a free constant. Lambda is chosen by the rank correlation on
    held-out samples; then all samples are fitted.

    Weights are multiplied one by one. So the data must determine each of them, or they must be the
    smallest that fit (:func:`scipy.linalg.lstsq` with a cutoff well above rounding).

    Args:
        weights: Weights of the proxy's predictor, ``(features,)``: of one-hot operations and a
            constant, or of the last layer of a network.
        validation: Number of samples to choose lambda on (20 in the paper). With fewer than twice
            as many samples, half of them.
        seed: Random seed of the split.
        norm: ``"l1"`` as in the paper, or ``"l2"`` with a free constant as in the authors' program.

    Raises:
        ValueError: there is no such norm.
    """

    def __init__(
        self,
        weights: ArrayLike,
        validation: int = VALIDATION,
        seed: int = 0,
        norm: str = "l1",
    ) -> None:
        if norm not in NORMS:
            raise ValueError(unknown("norm", norm, NORMS))
        self.weights = np.asarray(weights, dtype=float)
        self.validation = validation
        self.seed = seed
        self.norm = norm

    def fit(self, features: ArrayLike, latency_ms: ArrayLike) -> Self:
        """Fit to samples of the target device.

        Args:
            features: Features, ``(n, features)``.
            latency_ms: Latencies, ms, ``(n,)``.

        Raises:
            ValueError: shapes disagree, values are not finite, or there are fewer than four
                samples.
        """
        parts, latency_ms = self._parts(features), np.asarray(latency_ms, dtype=float)
        if latency_ms.shape != (len(parts),) or len(parts) < 4:
            raise ValueError(
                f"{latency_ms.shape} latencies of {len(parts)} architectures: give a latency for "
                "each of 4 or more"
            )
        if not np.isfinite(latency_ms).all() or not np.isfinite(parts).all():
            raise ValueError("features and latencies must be finite")
        held = min(self.validation, len(parts) // 2)
        order = np.random.default_rng(self.seed).permutation(len(parts))
        judge, learn = order[:held], order[held:]
        solve = _SOLVERS[self.norm]
        found, _ = solve(parts[learn], latency_ms[learn], _PENALTIES)
        merit = [_merit(parts[judge] @ scales, latency_ms[judge]) for scales in found]
        self.penalty_share_ = float(_PENALTIES[int(np.argmax(merit))])
        (self.scales_,), (self.constant_ms_,) = solve(
            parts, latency_ms, np.array([self.penalty_share_])
        )
        return self

    def predict(self, features: ArrayLike) -> Floats:
        """Return latencies on the target, ms, ``(n,)``, to rank by."""
        return np.asarray(self._parts(features) @ self.scales_ + self.constant_ms_)

    def _parts(self, features: ArrayLike) -> Floats:
        values = np.asarray(features, dtype=float)
        if values.ndim != 2 or values.shape[1] != len(self.weights):
            raise ValueError(f"features {values.shape}: the proxy has {len(self.weights)} weights")
        return np.asarray(values * self.weights)


def _sparse(parts: Floats, latency_ms: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """Return ``alpha + b``, ``(penalties, features)``, and constants of 0, ``(penalties,)``.

    Args:
        parts: Weighted features, ``(n, features)``.
        latency_ms: Latencies, ms, ``(n,)``.
        shares: Penalties, relative to the smallest one at which ``b`` is 0.
    """
    unit, unit_ms = float(np.abs(parts).max()), float(np.abs(latency_ms).max())
    if unit == 0:
        return np.zeros((len(shares), parts.shape[1])), np.zeros(len(shares))
    parts, latency_ms = (
        parts / unit,
        latency_ms / (unit_ms or 1),
    )  # the path's tolerances are absolute
    whole = parts.sum(axis=1)
    size = whole @ whole
    # The best alpha follows from b. The rest is an ordinary lasso, whose solutions are linear
    # between the corners of a path.
    rest = latency_ms - whole * (whole @ latency_ms / size)
    reduced = parts - np.outer(whole, parts.T @ whole / size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about linearly dependent columns
        penalties, _, path = lars_path(reduced, rest, method="lasso", alpha_min=0.0)
    wanted = shares * penalties[0]
    b = np.stack([np.interp(-wanted, -penalties, one) for one in path], axis=1)
    alpha = (whole @ latency_ms - b @ (parts.T @ whole)) / size
    return np.asarray((alpha[:, None] + b) * unit_ms / unit), np.zeros(len(shares))


def _short(parts: Floats, latency_ms: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """Return ``alpha + b``, ``(penalties, features)``, and free constants, ``(penalties,)``.

    A penalty on the norm of ``b`` has the solution of some penalty on its square, which a singular
    value decomposition gives.

    Args:
        parts: Weighted features, ``(n, features)``.
        latency_ms: Latencies, ms, ``(n,)``.
        shares: Penalties on the square, relative to the largest eigenvalue of the features'
            products.
    """
    centre, centre_ms = parts.mean(axis=0), latency_ms.mean()
    inner, rest = parts - centre, latency_ms - centre_ms
    whole = inner.sum(axis=1)
    size = float(whole @ whole) or 1.0
    left = rest - whole * (whole @ rest / size)
    u, s, vt = np.linalg.svd(inner - np.outer(whole, inner.T @ whole / size), full_matrices=False)
    penalty = shares[:, None] * (s[0] ** 2 or 1.0)
    b = (s * (u.T @ left) / (s**2 + penalty)) @ vt
    alpha = (whole @ rest - b @ (inner.T @ whole)) / size
    scales = alpha[:, None] + b
    return scales, centre_ms - scales @ centre


_SOLVERS = {"l1": _sparse, "l2": _short}


def _merit(predicted_ms: Floats, latency_ms: Floats) -> float:
    if np.ptp(predicted_ms) == 0 or np.ptp(latency_ms) == 0:
        return -1.0
    return float(spearmanr(predicted_ms, latency_ms).statistic)
