"""What an error of latency predictions costs whoever selects architectures by them.

Selected is what is Pareto-optimal by predicted latency and true accuracy; that choice is perfect,
so all that is lost is the predictor's doing (Laube et al., What to expect of hardware metric
predictors in NAS, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What ``k`` selections came to, each ``(k,)``.

    Attributes:
        selected: how many architectures were believed to be Pareto-optimal.
        verified: how many of these are left once they are measured: those that are Pareto-optimal
            among the selected.
        mra_all_percent: mean reduction of accuracy over the selected, in points of accuracy. An
            architecture's reduction is what the most accurate candidate of at most its (true)
            latency has more.
        mra_verified_percent: the same over the verified.
        hypervolume: of the selected, by true latency; see :func:`hypervolume`.
    """

    selected: NDArray[np.int64]
    verified: NDArray[np.int64]
    mra_all_percent: Floats
    mra_verified_percent: Floats
    hypervolume: Floats


class Candidates:
    """Sets of architectures to select from, of which all is known.

    Args:
        latency: the true one, ``(k, n)``: ``k`` sets of ``n``. In any unit.
        accuracy_percent: ``(k, n)``, falling along each set: :func:`by_falling_accuracy` is the
            order.
        reference: the latency that the hypervolume's area reaches to.

    Raises:
        ValueError: shapes differ or are empty, a value is NaN, or accuracies rise.
    """

    def __init__(self, latency: Floats, accuracy_percent: Floats, reference: float) -> None:
        if latency.ndim != 2 or latency.shape != accuracy_percent.shape or not latency.size:
            raise ValueError(
                "latencies and accuracies are (k, n) alike; got "
                f"{latency.shape} and {accuracy_percent.shape}"
            )
        if np.isnan(latency).any() or not (np.diff(accuracy_percent, axis=1) <= 0).all():
            raise ValueError("sets must be in order of falling accuracy, without NaN")
        self.latency = latency
        self.accuracy_percent = accuracy_percent
        self.reference = reference
        self._front = self._chosen(latency)

    def __len__(self) -> int:
        return len(self.latency)

    def hypervolume(self) -> Floats:
        """Of the true fronts, ``(k,)``."""
        return _area(*self._front, self.reference)

    def select(self, predicted: Floats) -> Outcomes:
        """What selecting by these latencies comes to.

        Args:
            predicted: ``(k, n)``; of a single set also ``(predictions, n)``.

        Raises:
            ValueError: another shape.
        """
        if predicted.shape[1:] != self.latency.shape[1:] or len(self) not in (1, len(predicted)):
            raise ValueError(f"predictions are {self.latency.shape}; got {predicted.shape}")
        latency, accuracy = self._chosen(predicted)
        loss = self._best_at(latency) - accuracy
        among = np.isfinite(latency)
        verified = np.zeros(latency.shape, dtype=bool)
        verified[_front(latency, accuracy)] = True
        return Outcomes(
            among.sum(axis=1),
            verified.sum(axis=1),
            np.mean(loss, axis=1, where=among),
            np.mean(loss, axis=1, where=verified),
            _area(latency, accuracy, self.reference),
        )

    def _chosen(self, latency: Floats) -> tuple[Floats, Floats]:
        """True latencies and accuracies of what these latencies select, in rows as long as the
        longest needs; what is left over has latency infinity and accuracy 0."""
        rows, columns = _front(latency, np.broadcast_to(self.accuracy_percent, latency.shape))
        counts = np.bincount(rows, minlength=len(latency))
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = len(latency), int(counts.max())
        chosen, accuracy = np.full(shape, np.inf), np.zeros(shape)
        own = rows if len(self) > 1 else 0
        chosen[rows, place] = self.latency[own, columns]
        accuracy[rows, place] = self.accuracy_percent[own, columns]
        return chosen, accuracy

    def _best_at(self, latency: Floats) -> Floats:
        """The best accuracy to be had at each latency, ``(k, m)``."""
        front, accuracy = self._front
        reachable = front[:, None, :] <= latency[..., None]
        best: Floats = np.where(reachable, accuracy[:, None, :], -np.inf).max(axis=2)
        return best


def by_falling_accuracy(accuracy_percent: ArrayLike) -> NDArray[np.int64]:
    """Row numbers from the most accurate to the least, ``(n,)``."""
    return np.argsort(-np.asarray(accuracy_percent, dtype=np.float64), kind="stable")


def pareto_front(latency: ArrayLike, accuracy: ArrayLike) -> NDArray[np.bool_]:
    """Which architectures no other beats, ``(n,)``.

    One beats another that is at most as fast and at most as accurate, unless they are equal in
    both: equals are on the front together, or not at all.

    Args:
        latency, accuracy: ``(n,)``, without NaN.
    """
    order = by_falling_accuracy(accuracy)
    ranked = np.asarray(latency, dtype=np.float64)[order], np.asarray(accuracy, dtype=float)[order]
    result = np.zeros(len(order), dtype=bool)
    _, places = _front(*(values[None] for values in ranked))
    result[order[places]] = True
    return result


def reductions(latency: ArrayLike, accuracy: ArrayLike, selected: NDArray[np.bool_]) -> Floats:
    """How much more accurate than each selected architecture the best candidate of at most its
    latency is, ``(selected,)``. Their mean is the mean reduction of accuracy; where not all
    candidates are known, it is so much at least.

    Args:
        latency, accuracy: true ones of all that are known, the selected included, ``(n,)``,
            without NaN.
        selected: ``(n,)``.
    """
    known, worth = np.asarray(latency, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    order = np.argsort(known, kind="stable")
    best = np.maximum.accumulate(worth[order])
    place = np.searchsorted(known[order], known[selected], side="right") - 1
    result: Floats = best[place] - worth[selected]
    return result


def hypervolume(latency: ArrayLike, accuracy_percent: ArrayLike, reference: float) -> float:
    """The area under the staircase of the best accuracy to be had at each latency.

    From the fastest architecture's latency to ``reference``, in units of latency times accuracy
    as a share: at 0 percent the area is 0, and what is slower than ``reference`` adds nothing.

    Args:
        latency, accuracy_percent: ``(n,)``, without NaN; in any order.
    """
    order = by_falling_accuracy(accuracy_percent)
    latency = np.asarray(latency, dtype=np.float64)[order]
    accuracy = np.asarray(accuracy_percent, dtype=np.float64)[order]
    return float(_area(latency[None], accuracy[None], reference)[0])


# In what follows accuracies fall along each row: what is faster than all before it is on the front.


def _front(latency: Floats, accuracy: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the front of each row, ``(k, n)``, in order."""
    rows, columns = np.nonzero(latency == np.minimum.accumulate(latency, axis=1))
    found, worth = latency[rows, columns], accuracy[rows, columns]
    # As fast as all before it, each: of equal latency only the first's accuracy counts, and of
    # equal accuracy only the last's latency. Both lie side by side.
    first = np.append(True, (np.diff(rows) != 0) | (np.diff(found) != 0))
    last = np.append((np.diff(rows) != 0) | (np.diff(worth) != 0), True)
    runs = np.cumsum(first) - 1
    keep = worth == worth[np.flatnonzero(first)][runs]
    runs = np.cumsum(last) - last
    keep &= found == found[np.flatnonzero(last)][runs]
    return rows[keep], columns[keep]


def _area(latency: Floats, accuracy_percent: Floats, reference: float) -> Floats:
    least = np.minimum.accumulate(np.minimum(latency, reference), axis=1)
    widths = -np.diff(least, axis=1, prepend=reference)
    area: Floats = (widths * accuracy_percent / 100).sum(axis=1)
    return area
