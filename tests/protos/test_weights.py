"""Weights that both sides draw the same."""

import math

import numpy as np
import pytest

from esm_protos.weights import draw_weights


def test_same_name_shape_and_seed_give_the_same_values() -> None:
    first = draw_weights("conv1.weight", (8, 3, 3, 3), seed=7)
    np.testing.assert_array_equal(first, draw_weights("conv1.weight", (8, 3, 3, 3), seed=7))


@pytest.mark.parametrize(("name", "seed"), [("conv2.weight", 7), ("conv1.weight", 8)])
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (16,)])
def test_other_names_and_seeds_give_other_values(
    name: str, seed: int, shape: tuple[int, ...]
) -> None:
    assert (draw_weights("conv1.weight", shape, 7) != draw_weights(name, shape, seed)).any()


@pytest.mark.parametrize("shape", [(512, 64, 3, 3), (1000, 2048), (2048, 512, 1, 1)])
def test_matrices_are_he_normal(shape: tuple[int, ...]) -> None:
    values = draw_weights("w", shape)
    assert values.shape == shape
    assert values.dtype == np.float32
    assert values.std() == pytest.approx(math.sqrt(2 / math.prod(shape[1:])), rel=0.02)
    assert abs(values.mean()) < 0.02 * values.std()


def test_vectors_serve_as_variances_too() -> None:
    values = draw_weights("norm1.variance", (4096,))
    assert 0.5 <= values.min() < values.max() < 1.5


def test_drawn_values_may_be_written_to() -> None:
    before = draw_weights("w", (64, 64)).copy()
    draw_weights("w", (64, 64))[:] = 0
    np.testing.assert_array_equal(draw_weights("w", (64, 64)), before)
