"""Vector encodings that ESM compares (ESM, Fig. 7c and 7d), and one-hot by operation.

There are ``U`` units of up to ``D`` blocks. Blocks have ``F`` features with ``V`` values in all,
and ``O`` options (combinations of feature values).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder
from esm_models.space import Codes

_CHUNK = 4096  # architectures per step, so that counters stay in the processor's cache


class OneHotEncoder(Encoder):
    """One-hot depth per unit, one-hot value of each feature per block: U * (depths + D * V)."""

    name = "one-hot"

    def _columns(self) -> list[str]:
        space = self.space
        names = [
            f"unit{unit}.depth={depth}"
            for unit, depths in zip(self._units(), space.depths, strict=True)
            for depth in depths
        ]
        return names + [
            f"unit{unit}.block{block}.{feature.name}={value}"
            for unit in self._units()
            for block in range(1, space.max_unit_depth + 1)
            for feature in space.unit_features[unit - 1]
            for value in feature.values
        ]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        present = (codes >= 0).sum(axis=2)
        depths = [
            present[:, [unit]] == np.array(options)
            for unit, options in enumerate(self.space.depths)
        ]
        parts = []
        for unit, features in enumerate(self.space.unit_features):
            pairs = [(feature.name, value) for feature in features for value in feature.values]
            table = np.array(
                [
                    [option.values.get(name) == value for name, value in pairs]
                    for option in self.space.options
                ]
                + [[False] * len(pairs)]  # code -1
            )
            parts.append(table[codes[:, unit]].reshape(len(codes), -1))
        return np.concatenate([*depths, *parts], axis=1)


class OperationOneHotEncoder(Encoder):
    """One-hot option per block, the operations of NAS benchmarks: blocks * O.

    Unlike :class:`OneHotEncoder`, it distinguishes combinations of features.
    """

    name = "operation-one-hot"

    def _columns(self) -> list[str]:
        return [
            f"unit{unit}.block{block}.{option.label}"
            for unit, depths in zip(self._units(), self.space.depths, strict=True)
            for block in range(1, max(depths) + 1)
            for option in self._options_of(unit)
        ]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        space = self.space
        parts = [
            codes[:, unit, : max(depths), None] == options
            for unit, (depths, options) in enumerate(
                zip(space.depths, space.block_options, strict=True)
            )
        ]
        return np.concatenate([part.reshape(len(codes), -1) for part in parts], axis=1)


class FeatureEncoder(Encoder):
    """Depth per unit, value of each feature per block, 0 where absent: U * (1 + D * F)."""

    name = "feature"

    def _columns(self) -> list[str]:
        names = [f"unit{unit}.depth" for unit in self._units()]
        return names + [
            f"unit{unit}.block{block}.{feature.name}"
            for unit in self._units()
            for block in range(1, self.space.max_unit_depth + 1)
            for feature in self.space.features
        ]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        values = self._values(codes).reshape(len(codes), -1)
        return np.concatenate([(codes >= 0).sum(axis=2), values], axis=1)


class StatisticalEncoder(Encoder):
    """Depth, and mean and standard deviation of each feature, per unit: U * (1 + 2 * F)."""

    name = "statistical"

    def _columns(self) -> list[str]:
        statistics = [
            f"{feature.name}.{statistic}"
            for feature in self.space.features
            for statistic in ("mean", "sd")
        ]
        return [f"unit{u}.{name}" for u in self._units() for name in ["depth", *statistics]]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        values = self._values(codes)
        present = (codes >= 0)[..., None]
        depth = present.sum(axis=2)  # (n, U, 1)
        divisor = np.maximum(depth, 1)  # a unit may be empty in spaces that allow it
        mean = values.sum(axis=2) / divisor
        deviation = np.where(present, values - mean[:, :, None], 0)
        sd = np.sqrt((deviation**2).sum(axis=2) / divisor)
        statistics = np.stack([mean, sd], axis=-1).reshape(*mean.shape[:2], -1)
        return np.concatenate([depth, statistics], axis=2).reshape(len(codes), -1)


class FeatureCountEncoder(Encoder):
    """FC: number of blocks with each value of each feature, per unit: U * V."""

    name = "fc"

    def _columns(self) -> list[str]:
        return [
            f"unit{unit}.{feature.name}={value}"
            for unit in self._units()
            for feature in self.space.unit_features[unit - 1]
            for value in feature.values
        ]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        counts = [
            sum(
                codes[:, unit] == index
                for index, option in enumerate(self.space.options)
                if option.values.get(feature.name) == value
            ).sum(axis=1)
            for unit, features in enumerate(self.space.unit_features)
            for feature in features
            for value in feature.values
        ]
        return np.stack(counts, axis=1)


class FeatureCombinationCountEncoder(Encoder):
    """FCC: number of blocks with each combination of features, per unit: U * O (ESM, II-C4)."""

    name = "fcc"

    def _columns(self) -> list[str]:
        return [f"unit{u}.{option.label}" for u in self._units() for option in self._options_of(u)]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        # Every block raises the counter of its unit and option; the first counts absent blocks.
        counters = len(self.space.options) + 1
        units = codes.shape[1]
        counts = np.empty((len(codes), units, counters - 1), dtype=np.float32)
        for begin in range(0, len(codes), _CHUNK):
            chunk = codes[begin : begin + _CHUNK]
            first = np.arange(1, len(chunk) * units * counters, counters).reshape(-1, units, 1)
            counted = np.bincount((chunk + first).ravel(), minlength=len(chunk) * units * counters)
            counts[begin : begin + _CHUNK] = counted.reshape(-1, units, counters)[..., 1:]
        kept = [counts[:, unit, options] for unit, options in enumerate(self.space.block_options)]
        return np.concatenate(kept, axis=1) if self.space.units else counts.reshape(len(codes), -1)
