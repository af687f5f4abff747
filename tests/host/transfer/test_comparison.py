"""Devices side by side, and which may stand for which."""

from __future__ import annotations

import numpy as np
import pytest

from esm_host.transfer.comparison import Comparison, compare
from esm_host.transfer.monotonicity import rank_correlation
from esm_host.transfer.source import Source
from esm_models.spaces import load_space

SPACE = load_space("nasbench201")


@pytest.fixture(scope="module")
def compared() -> Comparison:
    """Four boards of 30 cells: ``b`` ranks as ``a``, ``c`` nearly so; ``d`` has three of them."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(5**6)[:30, None] // 5 ** np.arange(6) % 5
    codes = codes.astype(np.int16).reshape(30, *SPACE.code_shape)
    a = rng.uniform(1, 10, 30)
    boards = {"a": a, "b": 2 * a, "c": a * np.exp(rng.normal(0, 0.3, 30)), "d": a}
    order = rng.permutation(30)  # nobody promises the same order
    return compare(
        [
            Source(name, SPACE, codes[rows], latency_ms[rows])
            for name, latency_ms in boards.items()
            for rows in (order[:3] if name == "d" else order if name == "b" else np.arange(30),)
        ]
    )


def test_architectures_are_found_in_any_order(compared: Comparison) -> None:
    assert compared.latency_ms.shape == (30, 4)
    assert compared.matrix[0, 1] == pytest.approx(1)
    assert compared.shared.tolist() == [[30, 30, 30, 3]] * 3 + [[3, 3, 3, 3]]
    assert np.isnan(compared.matrix[3, :3]).all()


def test_all_others_with_a_target_from_the_most_alike_on(compared: Comparison) -> None:
    found = compared.with_target(0)
    assert list(found) == [1, 2]
    assert found[1].value == pytest.approx(1)
    assert found[2] == rank_correlation(compared.latency_ms[:, 2], compared.latency_ms[:, 0])
    assert compared.with_target(3) == {}


def test_the_best_proxy_is_no_target(compared: Comparison) -> None:
    assert compared.best_proxy([0], 0.9) == 1
    assert compared.best_proxy([0, 1], 0.9) == 2
    assert compared.best_proxy([], 0.9) in (0, 1)
    with pytest.raises(ValueError, match="no device"):
        compared.best_proxy([0, 1, 2, 3], 0.9)


def test_those_that_rank_alike_stand_together(compared: Comparison) -> None:
    places = [compared.order.index(number) for number in (0, 1)]
    assert abs(places[0] - places[1]) == 1
