"""What every encoding does on every search space."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.bins import DepthBins
from esm_host.encoding import ENCODERS, Encoder, make_encoder
from esm_host.sampling import BalancedSampler
from esm_models.errors import InvalidArchitectureError
from esm_models.space import SearchSpace
from esm_models.spaces import SPACES, load_space
from tests.helpers import largest, smallest

SPACE_OBJECTS = {name: load_space(name) for name in SPACES}

# Lengths by hand: units * (...), see each encoder's docstring.
LENGTHS = {
    ("resnet", "fcc"): 36,
    ("resnet", "fc"): 24,
    ("resnet", "statistical"): 20,
    ("resnet", "feature"): 60,
    ("resnet", "one-hot"): 196,
    ("mobilenetv3", "fcc"): 36,
    ("mobilenetv3", "feature"): 36,
    ("resnet", "graph"): 30 * (9 + 2 + 4) + 30 * 30,
    ("nasbench201", "graph"): 8 * (5 + 2) + 8 * 8,
    ("nasbench201", "path"): 5 + 5**2 + 5**3,
    ("ofa", "graph"): 22 * (9 + 2 + 5 + 1) + 22 * 22,
    ("densenet", "fcc"): 25,
    ("densenet", "fc"): 25,
    ("densenet", "statistical"): 15,
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACE_OBJECTS[request.param]


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest, space: SearchSpace) -> Encoder:
    if not ENCODERS[request.param].suits(space):
        pytest.skip(f"{request.param} does not suit {space.name}")
    return make_encoder(request.param, space)


def draw(space: SearchSpace, n: int, seed: int):
    sampler = BalancedSampler(space, DepthBins(space.min_depth, space.max_depth, 3))
    return sampler.sample(n, np.random.default_rng(seed))


@pytest.mark.parametrize(("names", "length"), LENGTHS.items())
def test_lengths(names: tuple[str, str], length: int) -> None:
    assert len(make_encoder(names[1], SPACE_OBJECTS[names[0]])) == length


def test_every_column_has_a_name_of_its_own(encoder: Encoder, space: SearchSpace) -> None:
    assert len(set(encoder.columns)) == len(encoder)
    vectors = encoder.encode([smallest(space), largest(space)])
    assert vectors.shape == (2, len(encoder))
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


def test_none_encode_to_none(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, len(encoder))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_many_at_once_as_one_by_one(seed: int) -> None:
    for space in SPACE_OBJECTS.values():
        architectures = draw(space, 7, seed)
        for name, encoding in ENCODERS.items():
            if not encoding.suits(space):
                continue
            encoder = make_encoder(name, space)
            together = encoder.encode(architectures)
            alone = np.concatenate([encoder.encode([a]) for a in architectures])
            np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", ["one-hot", "feature", "graph"])
def test_encodings_by_block_tell_all_architectures_apart(name: str, space: SearchSpace) -> None:
    vectors = make_encoder(name, space).encode(draw(space, 300, 0))
    assert len(np.unique(vectors, axis=0)) == 300


def test_architectures_of_another_space_are_refused(encoder: Encoder, space: SearchSpace) -> None:
    other = next(s for s in SPACE_OBJECTS.values() if s.name != space.name)
    with pytest.raises(InvalidArchitectureError, match="is of space"):
        encoder.encode([smallest(other)])


def test_codes_of_another_shape_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="codes of"):
        encoder.encode_codes(np.zeros((2, 9, 9), dtype=np.int16))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_counts_and_statistics_are_what_counting_gives(seed: int) -> None:
    """Against the definitions, block by block in plain Python."""
    for space in SPACE_OBJECTS.values():
        options = {option.label: option for option in space.options}
        (architecture,) = draw(space, 1, seed)
        got = {}
        for name in ("fcc", "fc", "statistical", "feature", "one-hot"):
            encoder = make_encoder(name, space)
            vector = encoder.encode([architecture])[0].tolist()
            got[name] = dict(zip(encoder.columns, vector, strict=True))
        for number, unit in enumerate(architecture.units, start=1):
            for label in options:
                assert got["fcc"][f"unit{number}.{label}"] == unit.count(label)
            for feature in space.features:
                values = [options[label][feature.name] for label in unit]
                for value in feature.values:
                    column = f"unit{number}.{feature.name}={value}"
                    assert got["fc"][column] == values.count(value)
                numbers = np.array(values, dtype=float)
                statistics = got["statistical"]
                prefix = f"unit{number}.{feature.name}"
                assert statistics[f"{prefix}.mean"] == pytest.approx(numbers.mean(), rel=1e-5)
                assert statistics[f"{prefix}.sd"] == pytest.approx(numbers.std(), abs=1e-5)
                for block in range(1, space.max_unit_depth + 1):
                    name = f"unit{number}.block{block}.{feature.name}"
                    here = float(values[block - 1]) if block <= len(unit) else 0.0
                    assert got["feature"][name] == pytest.approx(here)
                    for value in feature.values:
                        hot = block <= len(unit) and values[block - 1] == value
                        assert got["one-hot"][f"{name}={value}"] == hot
            for name in ("statistical", "feature"):
                assert got[name][f"unit{number}.depth"] == len(unit)
            for depth in space.depths[number - 1]:
                assert got["one-hot"][f"unit{number}.depth={depth}"] == (depth == len(unit))
