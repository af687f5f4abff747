"""Arch2Vec and CATE: encodings that are learned from architectures alone."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from esm_host.encoding import make_encoder
from esm_host.errors import DatasetError, UsageError
from esm_host.predictors.linear import RidgePredictor
from esm_host.research.encodings.arch2vec import Arch2VecEncoder
from esm_host.research.encodings.cate import CATEEncoder, _leads_to
from esm_host.research.encodings.learned import LearnedEncoder
from esm_host.sampling.base import draw_options
from esm_models.space import Codes, SearchSpace
from esm_models.spaces import SPACES, load_space

SMALL: dict[type[LearnedEncoder], dict[str, Any]] = {
    Arch2VecEncoder: {"dimension": 16, "samples": 200, "hidden": 24, "batch_size": 8},
    CATEEncoder: {
        "dimension": 16,
        "samples": 200,
        "layers": 2,
        "pair_layers": 1,
        "heads": 4,
        "batch_size": 16,
    },
}
# Of the loss before training. Operations that are drawn at random can hardly be guessed.
LOSS_LEFT = {Arch2VecEncoder: 0.8, CATEEncoder: 0.95}
SPACE = load_space("nasbench201")


def drawn(space: SearchSpace, count: int, seed: int = 5) -> Codes:
    rng = np.random.default_rng(seed)
    depths = np.stack([rng.choice(depths, size=count) for depths in space.depths], axis=1)
    codes = draw_options(space, depths, rng)
    if space.resolutions:
        codes[:, -1, 0] %= 2  # tracing graphs of every size takes seconds
    return codes


CODES = drawn(SPACE, 300)


@pytest.fixture(params=SMALL, ids=lambda cls: cls.name)
def kind(request: pytest.FixtureRequest) -> type[LearnedEncoder]:
    return request.param


@cache
def learned(kind: type[LearnedEncoder]) -> LearnedEncoder:
    return kind(SPACE, **SMALL[kind]).fit()


@pytest.mark.predictors
def test_vectors_tell_what_networks_are_made_of(kind: type[LearnedEncoder]) -> None:
    vectors = learned(kind).encode_codes(CODES)
    assert vectors.shape == (300, 16) == (300, len(learned(kind)))
    assert vectors.dtype == np.float32
    counts = make_encoder("fcc", SPACE).encode_codes(CODES)
    for option, column in zip(SPACE.options, counts.T, strict=True):
        ridge = RidgePredictor().fit(vectors[:200], 1 + column[:200])
        told = spearmanr(ridge.predict(vectors[200:]), column[200:]).statistic
        assert told > 0.45, option.label


@pytest.mark.predictors
def test_training_makes_its_loss_small(kind: type[LearnedEncoder]) -> None:
    encoder = learned(kind)
    graphs = encoder._graphs(make_encoder("graph", SPACE).encode_codes(CODES))
    losses = []
    for network in (encoder._new(), encoder.network_):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(float(network(graphs)))
    before, after = losses
    assert after < LOSS_LEFT[kind] * before


@pytest.mark.predictors
def test_the_same_seed_gives_the_same(kind: type[LearnedEncoder]) -> None:
    first = learned(kind).encode_codes(CODES)
    torch.seed()
    np.random.seed(None)
    again = kind(SPACE, **SMALL[kind]).fit().encode_codes(CODES)
    np.testing.assert_array_equal(again, first)
    other = kind(SPACE, **SMALL[kind], seed=1).fit().encode_codes(CODES)
    assert not np.allclose(other, first)


def test_equal_architectures_are_equal_alone_or_among_others(kind: type[LearnedEncoder]) -> None:
    encoder = learned(kind)
    twice = encoder.encode_codes(np.repeat(CODES[:5], 2, axis=0))
    np.testing.assert_allclose(twice[::2], twice[1::2], atol=1e-5)
    np.testing.assert_allclose(encoder.encode_codes(CODES[:1])[0], twice[0], atol=1e-4)
    many = encoder.encode_codes(np.tile(CODES, (5, 1, 1)))
    np.testing.assert_allclose(many[300:600], many[:300], atol=1e-4)
    assert encoder.encode_codes(CODES[:0]).shape == (0, 16)


@pytest.mark.parametrize("space", [load_space(each) for each in SPACES], ids=lambda s: s.name)
def test_every_space(kind: type[LearnedEncoder], space: SearchSpace) -> None:
    codes = drawn(space, 40)
    encoder = kind(space, **{**SMALL[kind], "epochs": 1}).fit(codes)
    vectors = encoder.encode_codes(codes)
    assert vectors.shape == (40, 16)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(5), axis=0)) == len(np.unique(codes, axis=0))
    assert len(set(encoder.columns)) == 16


def test_one_architecture(kind: type[LearnedEncoder]) -> None:
    one = kind(SPACE, **SMALL[kind]).fit(CODES[:1])
    assert np.isfinite(one.encode_codes(CODES)).all()


def test_depth_and_resolution_count(kind: type[LearnedEncoder]) -> None:
    space = load_space("ofa")
    codes = np.repeat(drawn(space, 1), 3, axis=0)
    codes[:, 0] = 0
    codes[1, 0, 2:] = -1
    codes[2, -1, 0] = 12
    encoder = kind(space, **{**SMALL[kind], "epochs": 1}).fit(drawn(space, 40))
    whole, shorter, other_side = encoder.encode_codes(codes)
    assert np.abs(whole - shorter).max() > 1e-3
    assert np.abs(whole - other_side).max() > 1e-3


# Files


def test_what_is_saved_is_what_is_loaded(kind: type[LearnedEncoder], tmp_path: Path) -> None:
    path = tmp_path / "learned.npz"
    learned(kind).save(path)
    found = kind.load(path, load_space("nasbench201"))
    np.testing.assert_array_equal(found.encode_codes(CODES), learned(kind).encode_codes(CODES))
    assert found._settings() == learned(kind)._settings()


def test_a_file_of_something_else_is_refused(kind: type[LearnedEncoder], tmp_path: Path) -> None:
    path = tmp_path / "learned.npz"
    learned(kind).save(path)
    with pytest.raises(UsageError, match="another space"):
        kind.load(path, load_space("fbnet"))
    other = next(cls for cls in SMALL if cls is not kind)
    with pytest.raises(UsageError, match=f"is of encoding {kind.name}"):
        other.load(path, SPACE)
    with pytest.raises(UsageError, match="there is no"):
        kind.load(tmp_path / "missing.npz", SPACE)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError, match="damaged"):
        kind.load(path, SPACE)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, ("code of a file was run",)


def test_no_code_of_a_file_is_run(kind: type[LearnedEncoder], tmp_path: Path) -> None:
    path = tmp_path / "trap.npz"
    np.savez(path, about=np.array(_Trap(), dtype=object))
    with pytest.raises(DatasetError, match="not a learned encoding"):
        kind.load(path, SPACE)


# Refusals


def test_nothing_learned_yet(kind: type[LearnedEncoder], tmp_path: Path) -> None:
    encoder = kind(SPACE)
    with pytest.raises(ValueError, match="call fit or load first"):
        encoder.encode_codes(CODES)
    with pytest.raises(ValueError, match="call fit or load first"):
        encoder.save(tmp_path / "nothing.npz")


def test_what_cannot_be_learned_from(kind: type[LearnedEncoder]) -> None:
    with pytest.raises(ValueError, match="no architectures"):
        kind(SPACE).fit(CODES[:0])
    with pytest.raises(ValueError, match="codes of nasbench201"):
        kind(SPACE).fit(CODES[:, :, :3])
    with pytest.raises(ValueError, match="codes of nasbench201"):
        learned(kind).encode_codes(CODES[:, :, :3])


# CATE's parts


def test_partners_are_about_as_costly() -> None:
    encoder = CATEEncoder(SPACE, alike=0.1, partners=3)
    pairs = encoder._pairs(CODES)
    costs = make_encoder("cost", SPACE)
    mflops = costs.encode_codes(CODES)[:, costs.columns.index("written.all.mflops")]
    one, other = mflops[pairs].T
    assert (other <= one * 1.00001).all()
    assert (other >= one * 0.89999).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len(pairs) > 2.5 * len(CODES)


def test_nodes_attend_along_ways() -> None:
    adjacency = torch.zeros(1, 6, 6)
    for row, column in ((0, 1), (1, 2), (2, 5), (0, 3)):
        adjacency[0, row, column] = 1
    expected = torch.eye(6)
    for row, column in ((0, 1), (0, 2), (0, 5), (0, 3), (1, 2), (1, 5), (2, 5)):
        expected[row, column] = 1
    assert (_leads_to(adjacency)[0] == expected.bool()).all()
