"""Cost of prediction errors for the selection of architectures.

Architectures are selected that are Pareto-optimal by predicted latency and true accuracy. The
selection itself is exact, so any loss is due to the predictor. See Laube et al., What to expect of
hardware metric predictors in NAS, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SelectionResults:
    """Results of ``k`` selections, each ``(k,)``.

    Attributes:
        selected: Number of architectures that are Pareto-optimal by prediction.
        verified: Number of these that are Pareto-optimal among the selected by true latency.
        mra_all_percent: Mean reduction of accuracy over the selected, in percentage points. The
            reduction is the gap to the most accurate candidate of at most the same true latency.
        mra_verified_percent: Mean reduction of accuracy over the verified.
        hypervolume: Hypervolume of the selected by true latency (:func:`hypervolume`).
    """

    selected: NDArray[np.int64]
    verified: NDArray[np.int64]
    mra_all_percent: Floats
    mra_verified_percent: Floats
    hypervolume: Floats


class CandidateSets:
    """Sets of architectures to select from, with true latencies and accuracies.

    Args:
        latency: True latencies in any unit, ``(k, n)``: ``k`` sets of ``n``.
        accuracy_percent: Accuracies, ``(k, n)``, falling along each set
            (:func:`by_falling_accuracy`).
        reference: Latency at which the hypervolume's area ends.

    Raises:
        ValueError: shapes differ or are empty, a value is NaN, or accuracies rise.
    """

    def __init__(self, latency: Floats, accuracy_percent: Floats, reference: float) -> None:
        if latency.ndim != 2 or latency.shape != accuracy_percent.shape or not latency.size:
            raise ValueError(
                "latencies and accuracies must have one shape (k, n); got "
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
        """Return the hypervolume of the true fronts, ``(k,)``."""
        return _area(*self._front, self.reference)

    def select(self, predicted: Floats) -> SelectionResults:
        """Return the results of selecting by predicted latencies.

        Args:
            predicted: Predicted latencies, ``(k, n)``; for a single set also ``(predictions, n)``.

        Raises:
            ValueError: the shape differs.
        """
        if predicted.shape[1:] != self.latency.shape[1:] or len(self) not in (1, len(predicted)):
            raise ValueError(f"predictions are {self.latency.shape}; got {predicted.shape}")
        latency, accuracy = self._chosen(predicted)
        loss = self._best_at(latency) - accuracy
        among = np.isfinite(latency)
        verified = np.zeros(latency.shape, dtype=bool)
        verified[_front(latency, accuracy)] = True
        return SelectionResults(
            among.sum(axis=1),
            verified.sum(axis=1),
            np.mean(loss, axis=1, where=among),
            np.mean(loss, axis=1, where=verified),
            _area(latency, accuracy, self.reference),
        )

    def _chosen(self, latency: Floats) -> tuple[Floats, Floats]:
        """Return true latencies and accuracies of the architectures selected by these latencies.

        Rows are padded with latency infinity and accuracy 0.
        """
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
        """Return the best accuracy at each latency, ``(k, m)``."""
        front, accuracy = self._front
        reachable = front[:, None, :] <= latency[..., None]
        best: Floats = np.where(reachable, accuracy[:, None, :], -np.inf).max(axis=2)
        return best


def by_falling_accuracy(accuracy_percent: ArrayLike) -> NDArray[np.int64]:
    """Return row numbers from the most to the least accurate, ``(n,)``."""
    return np.argsort(-np.asarray(accuracy_percent, dtype=np.float64), kind="stable")


def pareto_front(latency: ArrayLike, accuracy: ArrayLike) -> NDArray[np.bool_]:
    """Return which architectures are on the Pareto front, ``(n,)``.

    An architecture is dominated by one that is at least as fast and as accurate, and not equal in
    both. Equal ones are on the front together, or not at all.

    Args:
        latency: Latencies, ``(n,)``, without NaN.
        accuracy: Accuracies, ``(n,)``, without NaN.
    """
    order = by_falling_accuracy(accuracy)
    ranked = np.asarray(latency, dtype=np.float64)[order], np.asarray(accuracy, dtype=float)[order]
    result = np.zeros(len(order), dtype=bool)
    _, places = _front(*(values[None] for values in ranked))
    result[order[places]] = True
    return result


def reductions(latency: ArrayLike, accuracy: ArrayLike, selected: NDArray[np.bool_]) -> Floats:
    """Return the reduction of accuracy of each selected architecture, ``(selected,)``.

    It is the gap to the most accurate candidate of at most the same latency. If not all candidates
    are known, it is a lower bound.

    Args:
        latency: True latencies of all candidates, ``(n,)``, without NaN.
        accuracy: True accuracies of all candidates, ``(n,)``, without NaN.
        selected: Which of these are selected, ``(n,)``.
    """
    known, worth = np.asarray(latency, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    order = np.argsort(known, kind="stable")
    best = np.maximum.accumulate(worth[order])
    place = np.searchsorted(known[order], known[selected], side="right") - 1
    result: Floats = best[place] - worth[selected]
    return result


def hypervolume(latency: ArrayLike, accuracy_percent: ArrayLike, reference: float) -> float:
    """Return the area under the staircase of the best accuracy at each latency.

    It reaches from the lowest latency to ``reference``, in units of latency times accuracy as a
    share. An accuracy of 0 percent or a latency above ``reference`` adds nothing.

    Args:
        latency: Latencies, ``(n,)``, without NaN, in any order.
        accuracy_percent: Accuracies, in percent, ``(n,)``, without NaN.
        reference: Latency at which the area ends.
    """
    order = by_falling_accuracy(accuracy_percent)
    latency = np.asarray(latency, dtype=np.float64)[order]
    accuracy = np.asarray(accuracy_percent, dtype=np.float64)[order]
    return float(_area(latency[None], accuracy[None], reference)[0])


# Below, accuracies fall along each row: an architecture faster than all before is on the front.


def _front(latency: Floats, accuracy: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the front of each row, ``(k, n)``, in order."""
    rows, columns = np.nonzero(latency == np.minimum.accumulate(latency, axis=1))
    found, worth = latency[rows, columns], accuracy[rows, columns]
    # Each is as fast as all before. Among neighbours of equal latency keep those as accurate as
    # the first. Among neighbours of equal accuracy keep those as fast as the last.
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
