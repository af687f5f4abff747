"""Check of a predictor on random architectures that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Check:
    """Accuracy on random architectures that were not trained on.

    Attributes:
        models: Number of measured architectures.
        accuracy_percent: Accuracy (100 - MAPE); None without measured architectures.
        low_percent: Lower end of its 95 % confidence interval; None with fewer than two.
        high_percent: Upper end.
    """

    models: int
    accuracy_percent: float | None
    low_percent: float | None
    high_percent: float | None

    @classmethod
    def of(cls, errors: NDArray[np.float64]) -> Self:
        """Return the check with these relative errors, ``(n,)``; Student's interval of their mean.

        The interval also holds for errors of bins of equal numbers. It is then somewhat too wide.
        """
        sizes = 100 * np.abs(errors)
        n = len(sizes)
        if not n:
            return cls(0, None, None, None)
        error = float(sizes.mean())
        if n == 1:
            return cls(1, 100 - error, None, None)
        half = float(t.ppf((1 + _CONFIDENCE) / 2, n - 1) * sizes.std(ddof=1) / n**0.5)
        return cls(n, 100 - error, 100 - error - half, min(100 - error + half, 100.0))
