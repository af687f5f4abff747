"""References reveal the device's pace, and themselves when they stray."""

import numpy as np
import pytest

from esm_host.evaluation.quality import judge, judge_at_usual

BASE = np.array([1.0, 2.0, 5.0, 0.3])


def test_a_common_pace_is_found_and_strays_nobody() -> None:
    pace = np.array([1.0, 1.3, 0.8, 1.0, 1.0])
    quality = judge(pace[:, None] * BASE, common_pace=True)
    np.testing.assert_allclose(quality.factors, pace)
    assert quality.worst.max() < 1e-9


def test_one_straying_reference_is_named_and_moves_no_factor() -> None:
    references = np.ones((6, 1)) * BASE
    references[4, 2] *= 1.1
    quality = judge(references, common_pace=True)
    np.testing.assert_allclose(quality.factors, 1)
    assert quality.deviations[4, 2] == pytest.approx(0.1)
    assert quality.worst.argmax() == 4


def test_in_a_row_nothing_is_common() -> None:
    references = np.array([[1.0], [1.0], [1.3], [1.0]]) * BASE
    quality = judge(references, common_pace=False)
    np.testing.assert_array_equal(quality.factors, 1)
    assert quality.worst[2] == pytest.approx(0.3)


def test_a_reference_that_failed_fails_its_block_only() -> None:
    references = np.ones((5, 1)) * BASE
    references[1, 0] = np.nan
    quality = judge(references, common_pace=True)
    assert quality.worst[1] == np.inf
    assert np.delete(quality.worst, 1).max() < 1e-9
    assert np.isfinite(quality.factors).all()


def test_one_block_alone_passes() -> None:
    assert judge(BASE[None], common_pace=True).worst[0] < 1e-9


def test_no_blocks() -> None:
    assert len(judge(np.zeros((0, 4)), common_pace=True).worst) == 0


def test_later_blocks_do_not_shift_the_scale() -> None:
    pace = np.array([1.0, 1.02, 0.98, 1.3, 1.31, 1.32, 1.33])
    typical = np.arange(7) < 3
    quality = judge(pace[:, None] * BASE, common_pace=True, typical=typical)
    np.testing.assert_allclose(quality.factors, pace, rtol=1e-9)
    nothing = judge(pace[:, None] * BASE, common_pace=True, typical=typical & False)
    np.testing.assert_allclose(nothing.factors, pace / 1.3, rtol=1e-9)


def test_at_the_usual_pace_a_reference_is_held_against_its_own_blocks() -> None:
    """Of a device; how much slower it is than another is its level, and no deviation."""
    slow = np.array([1.0, 1.0, 1.0, 1.1, 1.1])
    references = slow[:, None] * BASE
    references[1, 2] *= 1.05
    references[4, 0] = np.nan
    explained = np.full_like(references, 0.01)
    devices = np.array([0, 0, 0, 1, 1])
    typical = np.ones(5, dtype=bool)
    quality = judge_at_usual(references, explained, np.ones(5), devices, typical)
    np.testing.assert_allclose(quality.levels, slow)
    assert quality.deviations[1, 2] == pytest.approx(0.05)
    assert quality.straying(0.03).tolist() == [0, pytest.approx(0.05), 0, 0, np.inf]
    assert quality.straying(0.06).tolist() == [0, 0, 0, 0, np.inf]
    explained[1, 2] = 0.08
    quality = judge_at_usual(references, explained, np.ones(5), devices, typical)
    assert quality.straying(0.03).tolist() == [0, 0, 0, 0, np.inf]
