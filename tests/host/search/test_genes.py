"""Architectures as genes, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.search.genes import GeneEncoding, RowIndex, distinct, keys
from esm_models.spaces import SPACES, load_space

ENCODINGS = {name: GeneEncoding(load_space(name)) for name in SPACES}


@pytest.fixture(params=SPACES)
def encoding(request: pytest.FixtureRequest) -> GeneEncoding:
    return ENCODINGS[request.param]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(SPACES)))
def test_every_vector_is_an_architecture(seed: int, name: str) -> None:
    encoding = ENCODINGS[name]
    codes = encoding.to_codes(encoding.random(30, np.random.default_rng(seed)))
    space = encoding.space
    np.testing.assert_array_equal(space.encode(space.decode(codes)), codes)
    np.testing.assert_array_equal(encoding.to_codes(encoding.of_codes(codes)), codes)


def test_every_choice_is_drawn(encoding: GeneEncoding) -> None:
    genes = encoding.random(2000, np.random.default_rng(0))
    for gene, choices in enumerate(encoding.choices.tolist()):
        assert set(genes[:, gene].tolist()) == set(range(choices))


def test_genes_beyond_the_depth_have_no_effect() -> None:
    encoding = ENCODINGS["resnet"]
    shallow = np.zeros((2, len(encoding)), dtype=np.int16)  # first choice: one block per unit
    shallow[1, -1] = 5  # the last slot of the last unit
    codes = encoding.to_codes(shallow)
    np.testing.assert_array_equal(codes[0], codes[1])
    assert distinct(codes).tolist() == [0]


@pytest.mark.parametrize("name", ["nasbench201"])
def test_all_architectures_of_a_small_space_are_met_once(name: str) -> None:
    encoding = ENCODINGS[name]
    codes = np.concatenate(list(encoding.everything(at_once=4000)))
    assert len(codes) == encoding.space.count() == len(distinct(codes))


def test_of_a_space_with_depths_each_is_met_once(tmp_path) -> None:
    file = tmp_path / "small.py"
    file.write_text(
        "from esm_models.spaces.resnet import ResNetSpace\n"
        "class Small(ResNetSpace):\n"
        "    name = 'small'\n"
        "    depths = ((1, 2), (1,), (1,), (2,))\n"
    )
    space = load_space(f"{file}:Small", resolution=32)
    codes = np.concatenate(list(GeneEncoding(space).everything(at_once=100_000)))
    assert len(codes) == space.count() == len(distinct(codes))


def test_architectures_are_found_again() -> None:
    encoding = ENCODINGS["ofa"]
    codes = encoding.to_codes(encoding.random(50, np.random.default_rng(1)))
    rows = RowIndex(codes[:40])
    assert rows(codes).tolist() == [*range(40), *[-1] * 10]
    assert rows(codes[:0]).tolist() == []
    assert RowIndex(codes[:0])(codes[:3]).tolist() == [-1, -1, -1]
    assert len(keys(codes[:0])) == 0
