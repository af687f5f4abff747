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

NAMES = ("resnet", "mobilenetv3", "densenet", "nasbench201", "fbnet", "ofa")
SPACES = {name: load_space(name) for name in NAMES}

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
    side = draw(st.sampled_from(space.resolutions)) if space.resolutions else None
    return Architecture(space.name, tuple(units), side)


labels = st.text(min_size=1) | st.sampled_from(["-", "2*k3e1", "160", "px:", "a b", "|", '"'])
any_architecture = st.builds(
    Architecture,
    st.just("own"),
    st.lists(st.lists(labels | st.just("k3e1"), max_size=6).map(tuple), min_size=1).map(tuple),
    st.none() | st.integers(1, 9999),
)
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


def test_nasbench201_count() -> None:
    assert SPACES["nasbench201"].count() == 15_625


def test_fbnet_count() -> None:
    count = SPACES["fbnet"].count()
    assert count == 9**22
    assert f"{count:.2e}" == "9.85e+20"


def test_ofa_count() -> None:
    """Once-for-all's 2e19 subnets, at 25 resolutions."""
    count = SPACES["ofa"].count()
    assert count == (9**2 + 9**3 + 9**4) ** 5 * 25
    assert f"{count:.2e}" == "5.44e+20"
    assert load_space("ofa", resolution=192).count() == count // 25


@pytest.mark.parametrize(
    ("name", "units", "min_depth", "max_depth", "options"),
    [
        ("resnet", 4, 4, 28, 9),
        ("mobilenetv3", 4, 8, 16, 9),
        ("densenet", 5, 5, 30, 5),
        ("nasbench201", 1, 6, 6, 5),
        ("fbnet", 7, 22, 22, 9),
        ("ofa", 5, 10, 20, 9),
    ],
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
    labels = [option.label for option in SPACES["ofa"].options]
    assert labels == [f"k{k}e{e}" for k in (3, 5, 7) for e in (3, 4, 6)]


def test_options_may_be_words() -> None:
    space = SPACES["nasbench201"]
    words = ["none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3"]
    assert [option.label for option in space.options] == words
    assert space.options[3]["operation"] == "nor_conv_1x1"
    assert space.feature_values.tolist() == [[0], [1], [2], [3], [4], [0]]


def test_options_need_not_be_a_grid() -> None:
    space = SPACES["fbnet"]
    assert [option.label for option in space.options] == [
        *("skip", "k3_e1_g2", "k3_e1", "k5_e1_g2", "k5_e1", "k3_e3", "k5_e3", "k3_e6", "k5_e6")
    ]
    assert space.feature_values[[0, 1, 8, -1]].tolist() == [
        *([0, 0, 0], [3, 1, 2], [5, 6, 1], [0, 0, 0])
    ]


def test_wiring_of_nasbench201_is_the_cell_of_four_nodes() -> None:
    """An edge follows another where it begins at the node at which the other ends."""
    edges = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    follows = {
        (a, b)
        for a, (_, end) in enumerate(edges)
        for b, (begin, _) in enumerate(edges)
        if end == begin
    }
    first = {(-1, number) for number, (begin, _) in enumerate(edges) if begin == 0}
    last = {(number, 6) for number, (_, end) in enumerate(edges) if end == 3}
    wiring = SPACES["nasbench201"].wiring
    assert set(wiring) == follows | first | last
    assert len(set(wiring)) == len(wiring)


@untimed
@given(any_architecture | any_space.flatmap(architectures))
def test_the_short_form_is_read_as_it_is_written(architecture: Architecture) -> None:
    text = architecture.to_text()
    assert text.isprintable()
    assert Architecture.from_text(architecture.space, text) == architecture


@pytest.mark.parametrize(
    "text", ["k3e1 | :", 'k3e1 "k5', "10000*k3e1", "0*k3e1", "k3e1 k5e1: k3e1"]
)
def test_what_is_no_short_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidArchitectureError, match="short form"):
        Architecture.from_text("resnet", text)


def test_the_short_form_may_be_typed_loosely() -> None:
    typed = Architecture.from_text("ofa", " 160px:2*k3e3|k7e6 | - ")
    assert typed == Architecture("ofa", (("k3e3", "k3e3"), ("k7e6",), ()), 160)


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


OFA = Architecture("ofa", (("k3e3", "k7e6"),) * 5, 160)


def test_a_resolution_of_its_own_is_in_json_and_key() -> None:
    assert OFA.to_json() == {"space": "ofa", "units": [["k3e3", "k7e6"]] * 5, "resolution": 160}
    assert OFA.key == "fe077ed00575617f"
    assert Architecture("ofa", OFA.units, 164).key != OFA.key
    assert Architecture("ofa", OFA.units).key != OFA.key


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
        {"space": "ofa", "units": [["k3e3"]], "resolution": "160"},
        {"space": "ofa", "units": [["k3e3"]], "resolution": 160.0},
        {"space": "ofa", "units": [["k3e3"]], "resolution": True},
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
            ["unit 4 has 1 block;", "mobilenetv3", "2, 3, 4"],
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
        (
            "nasbench201",
            Architecture("nasbench201", (("none",) * 5,)),
            ["unit 1 has 5 blocks", "nasbench201 allows 6"],
        ),
        (
            "nasbench201",
            Architecture("nasbench201", (("nor_conv_5x5",) * 6,)),
            ["unit 1", "'nor_conv_5x5'", "none, skip_connect, avg_pool_3x3"],
        ),
        (
            "fbnet",
            Architecture("fbnet", (("k3_e6_g2",), *[("skip",) * 4] * 5, ("skip",))),
            ["unit 1", "'k3_e6_g2'", "skip, k3_e1_g2"],
        ),
        (
            "ofa",
            Architecture("ofa", (("k3e3",) * 2,) * 5, 130),
            ["resolution is 130", "ofa allows 128, 132", "224"],
        ),
        (
            "ofa",
            Architecture("ofa", (("k3e3",) * 2,) * 5),
            ["resolution is None", "ofa allows 128, 132"],
        ),
        (
            "resnet",
            Architecture("resnet", (K3,) * 4, 160),
            ["resolution of its own, 160", "leave it out", "224"],
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
        "too few edges",
        "unknown word",
        "no grid",
        "resolution not among the space's",
        "resolution missing",
        "resolution where all have one",
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
    assert codes.shape == (len(members), *space.code_shape)
    assert codes.dtype == np.int16
    assert space.decode(codes) == members


@untimed
@given(space_and_architectures)
def test_codes_are_option_indices_then_minus_one(
    drawn: tuple[SearchSpace, list[Architecture]],
) -> None:
    space, members = drawn
    labels = [option.label for option in space.options]
    blocks = space.blocks_of(space.encode(members))
    for row, architecture in zip(blocks, members, strict=True):
        for unit_codes, unit in zip(row, architecture.units, strict=True):
            expected = [labels.index(label) for label in unit]
            assert unit_codes.tolist() == expected + [-1] * (space.max_unit_depth - len(unit))


@untimed
@given(st.lists(architectures(SPACES["ofa"]), max_size=4))
def test_a_free_resolution_has_a_row_of_codes(members: list[Architecture]) -> None:
    space = SPACES["ofa"]
    codes = space.encode(members)
    assert space.code_shape == codes.shape[1:] == (6, 4)
    assert space.resolution_of(codes).tolist() == [a.resolution for a in members]
    assert codes[:, -1, 0].tolist() == [(a.resolution or 0) // 4 - 32 for a in members]
    assert (codes[:, -1, 1:] == -1).all()


def test_a_resolution_that_is_given_is_the_space_s() -> None:
    space = load_space("ofa", resolution=160)
    assert space.code_shape == (5, 4)
    units = (("k3e3",) * 2,) * 5
    codes = space.encode([Architecture("ofa", units)])
    assert space.resolution_of(codes).tolist() == [160]
    assert space.decode(codes) == [Architecture("ofa", units)]
    with pytest.raises(InvalidArchitectureError, match="of its own, 160: leave it out"):
        space.validate(Architecture("ofa", units, 160))


def test_resolution_by_default() -> None:
    assert {name: space.settings()["resolution"] for name, space in SPACES.items()} == {
        **dict.fromkeys(("resnet", "mobilenetv3", "densenet"), 224),
        **dict.fromkeys(("nasbench201", "fbnet"), 32),
        "ofa": "free",
    }


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
    [
        *(("resnett", "resnet"), ("mobilnetv3", "mobilenetv3"), ("dense", "densenet")),
        *(("nasbench", "nasbench201"), ("fbnt", "fbnet")),
    ],
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownSpaceError, match=f"'{name}': did you mean '{nearest}'") as error:
        load_space(name)
    for known in SPACES:
        assert known in str(error.value)


@pytest.mark.parametrize("name", ["", "xyz", "resnet:ResNetSpace"])
def test_unknown_name_lists_the_spaces_and_the_file_form(name: str) -> None:
    with pytest.raises(UnknownSpaceError, match=", ".join(NAMES) + r".*file\.py:Class"):
        load_space(name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet", {"resolution": 31}, "resolution 31 is too small for resnet: give 32 or more"),
        ("densenet", {"resolution": 63}, "resolution 63 .* densenet: give 64 or more"),
        ("resnet", {"width_mult": 0.04}, r"width_mult 0\.04 is outside 0\.05 to 8"),
        ("resnet", {"width_mult": 8.5}, r"width_mult 8\.5 is outside 0\.05 to 8"),
        ("resnet", {"width_mult": float("nan")}, r"width_mult nan is outside 0\.05 to 8"),
        ("resnet", {"batch": 0}, "batch 0 is outside 1 to 4096"),
        ("resnet", {"batch": 4097}, "batch 4097 is outside 1 to 4096"),
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


OWN_WORDS = """
    from esm_models.space import Feature, Option, SearchSpace


    class Words(SearchSpace):
        name = "words"
        depths = ((2,), (2,))
        features = (Feature("layer", "", ("pool", "conv")), Feature("kernel", "k", (0, 1, 3)))
        options = tuple(
            Option(label, {"layer": layer, "kernel": kernel})
            for label, layer, kernel in (
                ("pool", "pool", 0), ("conv1", "conv", 1), ("conv3", "conv", 3)
            )
        )
        resolutions = (16, 24)
        min_resolution = 8

        def network(self, net, units):
            x = net.input
            for unit in units:
                for block in unit:
                    if block["layer"] == "pool":
                        x = net.same_average_pool(x, kernel=3)
                    else:
                        x = net.relu(net.conv(x, 8, kernel=block["kernel"]))
            return net.linear(net.flatten(net.global_average_pool(x)), 10)
"""


def test_own_space_of_words_and_resolutions(tmp_path: Path) -> None:
    name = f"{write_space(tmp_path, OWN_WORDS)}:Words"
    space = load_space(name)
    assert space.count() == 3**4 * 2
    assert space.settings()["resolution"] == "free"
    architecture = Architecture("words", (("conv3", "pool"), ("pool", "conv1")), 24)
    codes = space.encode([architecture])
    assert codes.tolist() == [[[2, 0], [0, 1], [1, -1]]]
    assert space.decode(codes) == [architecture]
    model = space.build(architecture, lambda name, shape: np.ones(shape))
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 24, 24]
    session.run(None, {"input": np.zeros((1, 3, 24, 24), np.float32)})
    with pytest.raises(InvalidArchitectureError, match="words allows 16, 24"):
        space.validate(Architecture("words", architecture.units, 20))
    assert load_space(name, resolution=20).build(Architecture("words", architecture.units))


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


@pytest.mark.parametrize("name", ["TinySpce", "Feature"])
def test_own_space_class_missing_lists_those_in_the_file(tmp_path: Path, name: str) -> None:
    path = write_space(tmp_path, OWN_SPACE)
    with pytest.raises(UnknownSpaceError, match=f"unknown .* class '{name}' in .*choose TinySpace"):
        load_space(f"{path}:{name}")


@pytest.mark.parametrize("colon", ["", ":"])
def test_own_space_without_a_class_lists_those_in_the_file(tmp_path: Path, colon: str) -> None:
    path = write_space(tmp_path, OWN_SPACE)
    with pytest.raises(UnknownSpaceError, match=f"name a class of it: {path}:TinySpace"):
        load_space(f"{path}{colon}")


def test_own_space_class_missing_from_a_file_without_any(tmp_path: Path) -> None:
    path = write_space(tmp_path, "x = 1")
    with pytest.raises(UnknownSpaceError, match="derive one from SearchSpace"):
        load_space(f"{path}:TinySpace")


def test_own_space_says_which_methods_are_missing(tmp_path: Path) -> None:
    path = write_space(
        tmp_path,
        """
        from esm_models.space import SearchSpace

        class Own(SearchSpace):
            name, depths, features = "own", ((1,),), ()
        """,
    )
    with pytest.raises(UnknownSpaceError, match="Own must set network"):
        load_space(f"{path}:Own")


FAILING_CONSTRUCTORS = {
    "another signature": """
        from esm_models.spaces.densenet import DenseNetSpace

        class Own(DenseNetSpace):
            def __init__(self, colour):
                pass
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
