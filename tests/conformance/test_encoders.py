"""What every encoding does on every search space."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.encoding import ENCODERS, encoder_class, make_encoder
from esm_host.encoding.base import Encoder
from esm_host.sampling.balanced import BalancedSampler
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError
from esm_models.parts import parts_of
from esm_models.space import SearchSpace
from esm_models.spaces import SPACES, load_space
from tests.helpers import depth_bins, largest, smallest

BUILTIN = list(ENCODERS)
# Of those with many parts at each of their resolutions, one is enough.
FIXED = {"ofa-resnet50": {"resolution": 64}, "proxyless": {"resolution": 64}}
SPACE_OBJECTS = {name: load_space(name, **FIXED.get(name, {})) for name in SPACES}

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
    ("densenet", "operation-one-hot"): 150,
    ("nasbench201", "fcc"): 5,
    ("nasbench201", "one-hot"): 31,
    ("nasbench201", "operation-one-hot"): 30,
    ("fbnet", "fcc"): 63,
    ("fbnet", "fc"): 70,
    ("fbnet", "operation-one-hot"): 198,
    ("ofa", "fcc"): 46,
    ("ofa", "feature"): 46,
    ("ofa", "operation-one-hot"): 181,
    ("resnet", "parts"): 74,  # units * (first or other) * options, stem and head
    ("fbnet", "scaled-fcc"): 63,
    ("ofa", "scaled-fcc"): 2 * 45 + 1,
    ("mobilenetv4", "fcc"): 81,
    ("mobilenetv4", "one-hot"): 9 + 3 * 11 * 9,
    ("detector", "fcc"): 5 * 4 + 4,  # and the widths of the stages
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACE_OBJECTS[request.param]


@pytest.fixture
def encoder(plugin: str, space: SearchSpace) -> Encoder:
    if not encoder_class(plugin).suits(space):
        pytest.skip(f"{plugin} does not suit {space.name}")
    return make_encoder(plugin, space)


def draw(space: SearchSpace, n: int, seed: int):
    sampler = BalancedSampler(space, depth_bins(space, 3))
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


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_many_at_once_as_one_by_one(plugin: str, seed: int) -> None:
    for space in filter(encoder_class(plugin).suits, SPACE_OBJECTS.values()):
        architectures = draw(space, 7, seed)
        encoder = make_encoder(plugin, space)
        together = encoder.encode(architectures)
        alone = np.concatenate([encoder.encode([a]) for a in architectures])
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", ["one-hot", "feature", "operation-one-hot"])
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
        for name in ("fcc", "fc", "statistical", "feature", "one-hot", "operation-one-hot"):
            encoder = make_encoder(name, space)
            vector = encoder.encode([architecture])[0].tolist()
            got[name] = dict(zip(encoder.columns, vector, strict=True))
        for number, unit in enumerate(architecture.units, start=1):
            own = [space.options[code].label for code in space.block_options[number - 1]]
            for label in own:
                assert got["fcc"][f"unit{number}.{label}"] == unit.count(label)
            for feature in space.unit_features[number - 1]:
                values = [options[label][feature.name] for label in unit]
                for value in feature.values:
                    column = f"unit{number}.{feature.name}={value}"
                    assert got["fc"][column] == values.count(value)
                numbers = np.array([feature.number(value) for value in values])
                statistics = got["statistical"]
                prefix = f"unit{number}.{feature.name}"
                assert statistics[f"{prefix}.mean"] == pytest.approx(numbers.mean(), rel=1e-5)
                assert statistics[f"{prefix}.sd"] == pytest.approx(
                    numbers.std(), rel=1e-6, abs=1e-5
                )
                for block in range(1, space.max_unit_depth + 1):
                    name = f"unit{number}.block{block}.{feature.name}"
                    here = numbers[block - 1] if block <= len(unit) else 0.0
                    assert got["feature"][name] == pytest.approx(here)
                    for value in feature.values:
                        hot = block <= len(unit) and values[block - 1] == value
                        assert got["one-hot"][f"{name}={value}"] == hot
            for block in range(1, max(space.depths[number - 1]) + 1):
                for label in own:
                    hot = block <= len(unit) and unit[block - 1] == label
                    assert got["operation-one-hot"][f"unit{number}.block{block}.{label}"] == hot
            for name in ("statistical", "feature"):
                assert got[name][f"unit{number}.depth"] == len(unit)
            for depth in space.depths[number - 1]:
                assert got["one-hot"][f"unit{number}.depth={depth}"] == (depth == len(unit))


def test_a_free_resolution_is_the_last_column_or_acts_through_others(
    encoder: Encoder, space: SearchSpace
) -> None:
    if not space.resolutions:
        assert "resolution" not in encoder.columns
        return
    architectures = draw(space, 50, 0)
    sides = [a.resolution for a in architectures]
    assert len(set(sides)) > 10
    vectors = encoder.encode(architectures)
    deepest = largest(space)
    small, large = encoder.encode([replace(deepest, resolution=side) for side in (128, 224)])
    differing = {c for c, a, b in zip(encoder.columns, small, large, strict=True) if a != b}
    assert ("resolution" in encoder.columns) == encoder.with_resolution
    if encoder.with_resolution:
        assert encoder.columns[-1] == "resolution"
        assert vectors[:, -1].tolist() == sides
        assert differing == {"resolution"}
    assert differing
    pinned = type(encoder)(load_space(space.name, resolution=160))
    assert "resolution" not in pinned.columns


def test_words_stand_for_their_place_among_the_choices() -> None:
    space = SPACE_OBJECTS["nasbench201"]
    cell = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3", "none")
    vector = make_encoder("feature", space).encode([Architecture(space.name, (cell,))])
    assert vector.tolist() == [[6, 0, 1, 2, 3, 4, 0]]


def test_operation_one_hot_tells_blocks_of_equal_features_by_their_option() -> None:
    space = SPACE_OBJECTS["fbnet"]
    architecture = smallest(space)  # skip everywhere
    encoder = make_encoder("operation-one-hot", space)
    vector = encoder.encode([architecture])[0]
    hot = [column for column, value in zip(encoder.columns, vector, strict=True) if value]
    assert len(hot) == 22
    assert all(column.endswith(".skip") for column in hot)


def test_costs_are_those_of_the_graphs(space: SearchSpace) -> None:
    encoder = make_encoder("cost", space)
    assert "resolution" not in encoder.columns
    for architecture in draw(space, 3, 0):
        vector = dict(zip(encoder.columns, encoder.encode([architecture])[0], strict=True))
        parts = parts_of(space, architecture)
        operators = [operator for part in parts for operator in part.operators]
        assert min(vector.values()) >= 0
        for column, expected in {
            "all.mflops": sum(o.flops for o in operators) / 1e6,
            "all.mbytes": sum(o.bytes for o in operators) / 1e6,
            "all.operators": len(operators),
            "all.mparameters": sum(part.parameters for part in parts) / 1e6,
            "all.roofline4": sum(max(o.flops / 4, o.bytes) for o in operators) / 1e6,
        }.items():
            assert vector[column] == pytest.approx(expected, rel=1e-5)
        for kind in {o.kind for o in operators}:
            flops = sum(o.flops for o in operators if o.kind == kind) / 1e6
            assert vector[f"all.{kind}.mflops"] == pytest.approx(flops, rel=1e-5)
        mflops = [v for c, v in vector.items() if re.fullmatch(r"(unit|stage|rest).*mflops", c)]
        assert sum(mflops) == pytest.approx(vector["all.mflops"], rel=1e-5)


def test_dead_ends_cost_as_written_only() -> None:
    """Of two equal convolutions in a row, the second leads nowhere in the first cell."""
    encoder = make_encoder("cost", load_space("nasbench201"))
    none, conv = 0, 4
    dead = [none, none, none, conv, conv, none]  # 1-3 begins at a node without input
    codes = np.array([[dead], [[none, none, none, conv, none, none]]], dtype=np.int16)
    vectors = dict(zip(encoder.columns, encoder.encode_codes(codes).T, strict=True))
    stem_flops, cell_flops = (
        2 * 32 * 32 * 16 * 27,
        5 * 2 * 9 * (32 * 32 * 16**2 + 16 * 16 * 32**2 + 8 * 8 * 64**2),
    )
    with_dead, without = vectors["all.mflops"]
    assert with_dead == without
    with_dead, without = vectors["written.all.mflops"]
    assert with_dead - without == pytest.approx(
        (cell_flops + 5 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64) * 2) / 1e6, rel=1e-5
    )
    assert stem_flops / 1e6 < without


def test_counts_of_parts_and_scaled_counts() -> None:
    space = load_space("ofa")
    codes = np.full((2, *space.code_shape), -1, dtype=np.int16)
    codes[:, :5, :3] = 4
    codes[:, -1, 0] = 0, 24  # 128 and 224 pixels
    scaled = make_encoder("scaled-fcc", space)
    vectors = dict(zip(scaled.columns, scaled.encode_codes(codes).T, strict=True))
    share = (128 / 224) ** 2
    np.testing.assert_allclose(vectors["pixels"], [share, 1], rtol=1e-6)
    np.testing.assert_allclose(vectors["unit2.k5e4"], [3, 3])
    np.testing.assert_allclose(vectors["unit2.k5e4.scaled"], [3 * share, 3], rtol=1e-6)
    space = SPACE_OBJECTS["mobilenetv3"]
    encoder = make_encoder("parts", space)
    (architecture,) = draw(space, 1, 0)
    counted = dict(zip(encoder.columns, encoder.encode([architecture])[0], strict=True))
    expected = Counter(f"part.{part.key}" for part in parts_of(space, architecture))
    assert {column: count for column, count in counted.items() if count} == expected
