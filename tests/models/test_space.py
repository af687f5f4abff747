"""Search spaces as sets of architectures: sizes, validation, codes, and loading by name."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import FrozenInstanceError
from fractions import Fraction
from pathlib import Path

import hypothesis
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError, InvalidSpaceError, UnknownSpaceError
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from tests.models.torch_reference import scaled_channels

SPACES = {name: load_space(name) for name in ("resnet", "mobilenetv3", "densenet")}

MOBILENET = Architecture(
    "mobilenetv3",
    (
        ("k3e1/2", "k5e2/3"),
        ("k7e1", "k7e1", "k7e1"),
        ("k3e1", "k5e1/2", "k7e2/3", "k3e1/2"),
        ("k5e1", "k5e1"),
    ),
)


untimed = hypothesis.settings(deadline=None)


@st.composite
def architectures(draw: st.DrawFn, space: SearchSpace) -> Architecture:
    labels = st.sampled_from([option.label for option in space.options])
    units = []
    for depths in space.depths:
        depth = draw(st.sampled_from(depths))
        if space.one_option_per_unit:
            units.append((draw(labels),) * depth)
        else:
            units.append(tuple(draw(labels) for _ in range(depth)))
    return Architecture(space.name, tuple(units))


any_space = st.sampled_from(list(SPACES.values()))
space_and_architectures = any_space.flatmap(
    lambda space: st.tuples(st.just(space), st.lists(architectures(space), max_size=4))
)


# Sizes --------------------------------------------------------------------------------------


def test_resnet_count() -> None:
    count = SPACES["resnet"].count()
    assert count == sum(9**depth for depth in range(1, 8)) ** 4
    assert f"{count:.2e}" == "8.38e+26"


def test_mobilenetv3_count() -> None:
    count = SPACES["mobilenetv3"].count()
    assert count == (9**2 + 9**3 + 9**4) ** 4
    assert f"{count:.2e}" == "2.95e+15"


def test_densenet_count() -> None:
    count = SPACES["densenet"].count()
    assert count == (6 * 5) ** 5
    assert f"{count:.2e}" == "2.43e+07"


@pytest.mark.parametrize(
    ("name", "units", "min_depth", "max_depth", "options"),
    [("resnet", 4, 4, 28, 9), ("mobilenetv3", 4, 8, 16, 9), ("densenet", 5, 5, 30, 5)],
)
def test_extent(name: str, units: int, min_depth: int, max_depth: int, options: int) -> None:
    space = SPACES[name]
    assert space.unit_count == units
    assert (space.min_depth, space.max_depth) == (min_depth, max_depth)
    assert len(space.options) == len({option.label for option in space.options}) == options


def test_options_are_named_by_their_values() -> None:
    labels = [option.label for option in SPACES["resnet"].options]
    assert labels == [f"k{k}e{e}" for k in (3, 5, 7) for e in ("1/2", "2/3", "1")]
    assert SPACES["resnet"].options[4]["expansion"] == Fraction(2, 3)
    labels = [option.label for option in SPACES["densenet"].options]
    assert labels == ["k1", "k3", "k5", "k7", "k9"]


@untimed
@given(
    base=st.integers(1, 4096) | st.fractions(1, 4096, max_denominator=12),
    width_mult=st.integers(1, 64).map(lambda eighths: eighths / 8),
)
def test_channels_round_like_the_reference(base: int | Fraction, width_mult: float) -> None:
    channels = load_space("resnet", width_mult=width_mult).channels(float(base))
    assert channels == scaled_channels(base, width_mult)
    assert channels % 8 == 0
    assert channels >= max(8, 0.9 * float(base) * width_mult)


def test_channels_of_the_originals_are_kept() -> None:
    space = SPACES["resnet"]
    for channels in (16, 24, 32, 40, 64, 80, 160, 256, 512, 960, 1024, 1280, 2048):
        assert space.channels(channels) == channels


@pytest.mark.parametrize(
    ("base", "rounded"), [(1, 8), (11, 16), (12, 16), (18, 24), (20, 24), (42.67, 40)]
)
def test_channels_examples(base: float, rounded: int) -> None:
    assert SPACES["resnet"].channels(base) == rounded


# Architectures ------------------------------------------------------------------------------


def test_key_is_stable() -> None:
    assert MOBILENET.key == "88e40074f5965d9c"


def test_json_layout_is_stable() -> None:
    assert MOBILENET.to_json() == {
        "space": "mobilenetv3",
        "units": [
            ["k3e1/2", "k5e2/3"],
            ["k7e1", "k7e1", "k7e1"],
            ["k3e1", "k5e1/2", "k7e2/3", "k3e1/2"],
            ["k5e1", "k5e1"],
        ],
    }


@untimed
@given(any_space.flatmap(architectures))
def test_json_round_trip(architecture: Architecture) -> None:
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again == architecture
    assert hash(again) == hash(architecture)
    assert again.key == architecture.key
    assert re.fullmatch("[0-9a-f]{16}", again.key)


@untimed
@given(any_space.flatmap(lambda s: st.tuples(architectures(s), architectures(s))))
def test_keys_differ_where_architectures_do(pair: tuple[Architecture, Architecture]) -> None:
    first, second = pair
    assert (first.key == second.key) == (first == second)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "resnet",
        {},
        {"space": "resnet"},
        {"units": []},
        {"space": 1, "units": []},
        {"space": "resnet", "units": "k3"},
        {"space": "resnet", "units": ["k3"]},
        {"space": "resnet", "units": [[3]]},
    ],
)
def test_from_json_refuses_other_shapes(data: object) -> None:
    with pytest.raises(InvalidArchitectureError, match="an architecture is written"):
        Architecture.from_json(data)


def test_architecture_is_frozen_and_knows_its_depth() -> None:
    assert MOBILENET.depth == 11
    with pytest.raises(FrozenInstanceError):
        MOBILENET.space = "resnet"  # type: ignore[misc]


# Validation ---------------------------------------------------------------------------------

K3 = ("k3e1",)


@untimed
@given(space_and_architectures)
def test_architectures_of_the_space_are_valid(
    drawn: tuple[SearchSpace, list[Architecture]],
) -> None:
    space, members = drawn
    for architecture in members:
        space.validate(architecture)


@pytest.mark.parametrize(
    ("space", "architecture", "words"),
    [
        ("resnet", Architecture("densenet", (K3,) * 4), ["'densenet'", "'resnet'"]),
        ("resnet", Architecture("resnet", (K3,) * 3), ["resnet has 4 units", "3"]),
        ("resnet", Architecture("resnet", (K3,) * 5), ["resnet has 4 units", "5"]),
        (
            "resnet",
            Architecture("resnet", (K3, K3 * 8, K3, K3)),
            ["unit 2 has 8 blocks", "resnet", "1, 2, 3, 4, 5, 6, 7"],
        ),
        (
            "mobilenetv3",
            Architecture("mobilenetv3", (K3 * 2, K3 * 2, K3 * 2, K3)),
            ["unit 4 has 1 blocks", "mobilenetv3", "2, 3, 4"],
        ),
        ("resnet", Architecture("resnet", (K3, (), K3, K3)), ["unit 2 has 0 blocks", "1, 2"]),
        (
            "resnet",
            Architecture("resnet", (K3, K3, ("k3e1", "k9e1"), K3)),
            ["unit 3", "'k9e1'", "k3e1/2, k3e2/3, k3e1, k5e1/2", "k7e1"],
        ),
        (
            "densenet",
            Architecture("densenet", (("k4",),) * 5),
            ["unit 1", "'k4'", "k1, k3, k5, k7, k9"],
        ),
        (
            "densenet",
            Architecture("densenet", (("k3",), ("k3", "k1", "k3"), *[("k5",)] * 3)),
            ["unit 2", "k1, k3", "densenet takes one option for all blocks of a unit"],
        ),
    ],
    ids=[
        "wrong space",
        "too few units",
        "too many units",
        "too many blocks",
        "too few blocks",
        "empty unit",
        "unknown label",
        "unknown label of densenet",
        "mixed options",
    ],
)
def test_invalid_architectures_are_named(
    space: str, architecture: Architecture, words: list[str]
) -> None:
    for use in (
        SPACES[space].validate,
        SPACES[space].build,
        lambda wrong: SPACES[space].encode([wrong]),
    ):
        with pytest.raises(InvalidArchitectureError) as error:
            use(architecture)
        message = str(error.value)
        assert "\n" not in message
        for word in words:
            assert word in message


# Codes --------------------------------------------------------------------------------------


@untimed
@given(space_and_architectures)
def test_codes_round_trip(drawn: tuple[SearchSpace, list[Architecture]]) -> None:
    space, members = drawn
    codes = space.encode(members)
    assert codes.shape == (len(members), space.unit_count, space.max_unit_depth)
    assert codes.dtype == np.int16
    assert space.decode(codes) == members


@untimed
@given(space_and_architectures)
def test_codes_are_option_indices_then_minus_one(
    drawn: tuple[SearchSpace, list[Architecture]],
) -> None:
    space, members = drawn
    labels = [option.label for option in space.options]
    for row, architecture in zip(space.encode(members), members, strict=True):
        for unit_codes, unit in zip(row, architecture.units, strict=True):
            expected = [labels.index(label) for label in unit]
            assert unit_codes.tolist() == expected + [-1] * (space.max_unit_depth - len(unit))


# Loading by name ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_load_space_by_name(name: str) -> None:
    space = load_space(name, resolution=64, width_mult=0.5, batch=2)
    assert space.settings() == {
        "name": name,
        "resolution": 64,
        "width_mult": 0.5,
        "batch": 2,
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnett", "resnet"), ("mobilenet", "mobilenetv3"), ("dense", "densenet")],
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownSpaceError, match=f"'{name}': did you mean '{nearest}'") as error:
        load_space(name)
    for known in SPACES:
        assert known in str(error.value)


@pytest.mark.parametrize("name", ["", "xyz", "space.py", "resnet:ResNetSpace"])
def test_unknown_name_lists_the_spaces_and_the_file_form(name: str) -> None:
    with pytest.raises(UnknownSpaceError, match=r"resnet, mobilenetv3, densenet.*file\.py:Class"):
        load_space(name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet", {"resolution": 31}, "--resolution 31 is too small for resnet: give 32 or more"),
        ("densenet", {"resolution": 63}, "--resolution 63 .* densenet: give 64 or more"),
        ("resnet", {"width_mult": 0.04}, r"--width-mult 0\.04 is outside 0\.05 to 8"),
        ("resnet", {"width_mult": 8.5}, r"--width-mult 8\.5 is outside 0\.05 to 8"),
        ("resnet", {"width_mult": float("nan")}, r"--width-mult nan is outside 0\.05 to 8"),
        ("resnet", {"batch": 0}, "--batch 0 is outside 1 to 4096"),
        ("resnet", {"batch": 4097}, "--batch 4097 is outside 1 to 4096"),
        ("resnet", {"colour": "red"}, "resnet cannot be built: .*colour"),
    ],
)
def test_settings_out_of_range(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidSpaceError, match=message):
        load_space(name, **settings)


@pytest.mark.parametrize("name", SPACES)
def test_settings_at_their_bounds_build(name: str) -> None:
    cls = type(SPACES[name])
    space = load_space(name, resolution=cls.min_resolution, width_mult=0.05, batch=4096)
    smallest = Architecture(
        name, tuple((space.options[0].label,) * min(depths) for depths in space.depths)
    )
    assert space.build(smallest)


# A user's own space -------------------------------------------------------------------------

OWN_SPACE = '''
from fractions import Fraction

from esm_models.space import Feature, SearchSpace


class TinySpace(SearchSpace):
    """Two units of plain convolutions, a quarter or all of 64 channels."""

    name = "tiny"
    depths = ((1, 2), (2,))
    features = (
        Feature("kernel", "k", (1, 3)),
        Feature("width", "w", (Fraction(1, 4), Fraction(1))),
    )
    min_resolution = 8

    def network(self, net, units):
        x = net.input
        for number, unit in enumerate(units, start=1):
            with net.scope(f"unit{number}"):
                for block in unit:
                    channels = self.channels(64 * float(block["width"]))
                    x = net.relu(net.conv(x, channels, kernel=block["kernel"]))
                x = net.max_pool(x)
        return net.linear(net.flatten(net.global_average_pool(x)), 10)
'''


def write_space(folder: Path, text: str) -> str:
    path = folder / "own.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_own_space_builds_a_graph_that_runs(tmp_path: Path) -> None:
    space = load_space(
        f"{write_space(tmp_path, OWN_SPACE)}:TinySpace", resolution=15, width_mult=0.5, batch=2
    )
    assert space.name == "tiny"
    assert space.count() == (4 + 4**2) * 4**2
    architecture = Architecture("tiny", (("k3w1/4",), ("k1w1", "k3w1")))
    assert space.decode(space.encode([architecture])) == [architecture]

    shapes: dict[str, tuple[int, ...]] = {}

    def ones(name: str, shape: tuple[int, ...]) -> np.ndarray:
        shapes[name] = shape
        return np.ones(shape, np.float32)

    model = space.build(architecture, ones)
    assert list(shapes.values()) == [
        *[(8, 3, 3, 3), (8,)],
        *[(32, 8, 1, 1), (32,)],
        *[(32, 32, 3, 3), (32,)],
        *[(10, 32), (10,)],
    ]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": np.zeros((2, 3, 15, 15), np.float32)})
    assert output.shape == (2, 10)
    with pytest.raises(InvalidArchitectureError, match="k1w1/4, k1w1, k3w1/4, k3w1"):
        space.validate(Architecture("tiny", (("k5w1",), ("k1w1", "k3w1"))))


def test_own_space_checks_settings(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpaceError, match="too small for tiny: give 8 or more"):
        load_space(f"{write_space(tmp_path, OWN_SPACE)}:TinySpace", resolution=7)


def test_own_space_file_missing(tmp_path: Path) -> None:
    path = tmp_path / "absent.py"
    with pytest.raises(UnknownSpaceError, match=re.escape(f"no file '{path}'")):
        load_space(f"{path}:TinySpace")


def test_own_space_file_that_does_not_import(tmp_path: Path) -> None:
    path = write_space(tmp_path, "import no_such_module")
    with pytest.raises(UnknownSpaceError, match=r"cannot be imported: .*no_such_module"):
        load_space(f"{path}:TinySpace")


@pytest.mark.parametrize("name", ["TinySpce", "Feature", ""])
def test_own_space_class_missing_lists_those_in_the_file(tmp_path: Path, name: str) -> None:
    path = write_space(tmp_path, OWN_SPACE)
    with pytest.raises(UnknownSpaceError, match=f"no .* class '{name}': it has TinySpace"):
        load_space(f"{path}:{name}")


def test_own_space_class_missing_from_a_file_without_any(tmp_path: Path) -> None:
    path = write_space(tmp_path, "x = 1")
    with pytest.raises(UnknownSpaceError, match="derive one from SearchSpace"):
        load_space(f"{path}:TinySpace")


FAILING_CONSTRUCTORS = {
    "another signature": """
        from esm_models.spaces.densenet import DenseNetSpace

        class Own(DenseNetSpace):
            def __init__(self, colour):
                pass
    """,
    "no network method": """
        from esm_models.space import SearchSpace

        class Own(SearchSpace):
            name, depths, features = "own", ((1,),), ()
    """,
    "raises ValueError": """
        from esm_models.spaces.densenet import DenseNetSpace

        class Own(DenseNetSpace):
            def __init__(self, **settings):
                raise ValueError("no table of widths")
    """,
}


def test_own_space_that_lacks_what_it_must_set(tmp_path: Path) -> None:
    text = """
        from esm_models.space import SearchSpace

        class Own(SearchSpace):
            name = "own"
    """
    with pytest.raises(UnknownSpaceError, match="must set depths, features"):
        load_space(f"{write_space(tmp_path, text)}:Own")


@pytest.mark.parametrize("text", FAILING_CONSTRUCTORS.values(), ids=FAILING_CONSTRUCTORS)
def test_own_space_whose_constructor_fails(tmp_path: Path, text: str) -> None:
    name = f"{write_space(tmp_path, text)}:Own"
    with pytest.raises(InvalidSpaceError, match=re.escape(f"{name} cannot be built")):
        load_space(name)


def test_own_space_file_may_define_dataclasses(tmp_path: Path) -> None:
    stage = """
        from __future__ import annotations
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Stage:
            width: int
    """
    path = write_space(tmp_path, textwrap.dedent(stage) + OWN_SPACE)
    assert load_space(f"{path}:TinySpace").name == "tiny"


def test_own_space_may_return_an_operator_that_is_not_the_last(tmp_path: Path) -> None:
    text = """
        from esm_models.space import Feature, SearchSpace

        class Own(SearchSpace):
            name = "own"
            depths = ((1,),)
            features = (Feature("kernel", "k", (1,)),)

            def network(self, net, units):
                pooled = net.global_average_pool(net.input)
                features = net.flatten(pooled)
                net.relu(features)
                return features
    """
    space = load_space(f"{write_space(tmp_path, text)}:Own", resolution=32)
    model = space.build(Architecture("own", (("k1",),)), lambda name, shape: np.ones(shape))
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": -np.ones((1, 3, 32, 32), np.float32)})
    assert output.tolist() == [[-1, -1, -1]]
