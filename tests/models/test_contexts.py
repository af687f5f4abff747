"""Contexts: what networks are measured in and what is no part of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_host.encoding import make_encoder
from esm_host.errors import UsageError
from esm_host.predictors.lookup import neighbours
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.random import RandomSampler
from esm_host.search.genes import GeneEncoding
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError, InvalidSpaceError
from esm_models.graph import Axis, Network
from esm_models.part_table import PartTable
from esm_models.parts import parts_of
from esm_models.space import Feature, SearchSpace
from esm_models.spaces import load_space
from tests.helpers import depth_bins
from tests.models.level_spaces import StagedSpace, UnequalSpace


class Reader(SearchSpace):
    """Attention of one query over tokens of a cache, in blocks of free width."""

    name = "reader"
    depths = ((1, 2, 3),)
    features = (Feature("width", "w", (8, 16)),)
    choices = (Feature("hidden", "d", (16, 32)),)
    contexts = {"past": (8, 16, 40)}

    def network(self, net: Network, units: Any) -> str:
        past = Axis("past", units["past"])
        x = net.add_input("x", (self.batch, 1, units["hidden"]))
        for number, block in enumerate(units[0], start=1):
            with net.scope(f"unit1.block{number}"):
                width = block["width"]
                cache = net.add_input(f"cache.{number}", (self.batch, past, width))
                y = net.attention(net.linear(x, width), cache, cache, heads=1)
                x = net.add(x, net.linear(y, units["hidden"]))
        return x


SPACES = (
    Reader(),
    Reader().with_contexts({"batch": (1, 4)}),
    load_space("resnet", width_mult=0.25).with_contexts({"batch": (2, 3), "resolution": (32, 64)}),
    StagedSpace().with_contexts({"resolution": (32, 48)}),
    UnequalSpace().with_contexts({"batch": (1, 300)}),
)
spaces = pytest.mark.parametrize(
    "space", SPACES, ids=lambda space: f"{space.name}-{'-'.join(space.contexts)}"
)


def drawn(space: SearchSpace, n: int, seed: int = 0) -> list[Architecture]:
    return BalancedSampler(space, depth_bins(space, 3)).sample(n, np.random.default_rng(seed))


def input_dims(model: bytes) -> list[list[int]]:
    graph = onnx.load_from_string(model).graph
    return [[d.dim_value for d in x.type.tensor_type.shape.dim] for x in graph.input]


# Architectures


@spaces
@given(seed=st.integers(0, 2**32 - 1))
def test_an_architecture_survives_json_short_form_and_codes(space: SearchSpace, seed: int) -> None:
    architectures = drawn(space, 5, seed)
    codes = space.encode(architectures)
    assert codes.dtype == np.int16
    assert space.decode(codes) == architectures
    assert not space.outside(codes).any()
    assert space.in_contexts(codes).all()
    for architecture in architectures:
        assert dict(architecture.contexts).keys() == space.contexts.keys()
        assert Architecture.from_json(architecture.to_json()) == architecture
        assert space.read(architecture.to_text()) == architecture


def test_the_short_form_begins_with_the_contexts() -> None:
    given = Architecture("reader", (("w8", "w8"),), None, "d16", (), (("past", 40), ("batch", 4)))
    assert given.to_text() == "4 batch: 40 past: d16; 2*w8"
    assert given.to_json()["contexts"] == {"batch": 4, "past": 40}
    assert Architecture.from_text("reader", given.to_text()) == given
    free = Architecture("ofa", (("k3e3",),), 160, contexts=(("batch", 4),))
    assert free.to_text() == "160 px: 4 batch: k3e3"
    assert Architecture.from_text("ofa", free.to_text()) == free


def test_an_architecture_without_contexts_has_the_key_that_it_always_had() -> None:
    architecture = Architecture("resnet", (("k3e1",),) * 4)
    assert "contexts" not in architecture.to_json()
    assert architecture.key == "35a03934dab560cf"
    assert architecture.at(batch=2).key != architecture.key


def test_one_network_in_several_contexts_is_several_architectures() -> None:
    space = Reader()
    one = space.read("8 past: d16; w8")
    other = one.at(past=40)
    assert (one.units, one.choice) == (other.units, other.choice)
    assert one.key != other.key
    assert space.count() == 2 * (2 + 4 + 8)
    assert space.context_count == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d16; w8", r"has no past: begin it with '40 past: '"),
        ("8 past: 2 batch: d16; w8", "has a context batch; reader has past"),
        ("8 pst: d16; w8", "has no past"),
    ],
)
def test_an_architecture_in_other_contexts_is_refused(text: str, message: str) -> None:
    space = Reader()
    with pytest.raises(InvalidArchitectureError, match=message):
        space.validate(space.read(text))


def test_a_value_below_one_is_refused() -> None:
    space = Reader()
    outside = space.read("8 past: d16; w8").at(past=0)
    with pytest.raises(InvalidArchitectureError, match="past is 0; reader allows 1 to"):
        space.validate(outside)


# Values beside the grid


def test_a_value_that_is_not_drawn_is_of_the_space() -> None:
    space = Reader()
    (codes,) = space.encode([space.read("1500 past: d16; w8")])[None]
    assert space.contexts_of(codes).tolist() == [[1500]]
    assert not space.outside(codes).any()
    assert not space.in_contexts(codes).any()


def test_large_values_fit_the_codes() -> None:
    space = Reader()
    for value in (1, 32_767, 32_768, 131_072, 2**30 - 1):
        codes = space.encode([space.read(f"{value} past: d16; w8")])
        assert space.contexts_of(codes).tolist() == [[value]]
        assert space.decode(codes)[0].contexts == (("past", value),)


def test_a_space_in_one_context_places_architectures_there() -> None:
    space = Reader().at(past=1500)
    expected = Reader().read("1500 past: d16; w8")
    other = expected.at(past=8)
    for each in ("d16; w8", "8 past: d16; w8", other, other.to_json()):
        assert space.read(each) == expected
    assert {a.contexts for a in drawn(space, 20)} == {(("past", 1500),)}
    assert input_dims(space.build(expected)) == [[1, 1, 16], [1, 1500, 8]]
    assert Reader().contexts == {"past": (8, 16, 40)}


def test_a_single_value_is_filled_in_and_replaces_none() -> None:
    space = Reader().with_contexts({"past": 16})
    assert space.read("d16; w8").contexts == (("past", 16),)
    assert space.read("8 past: d16; w8").contexts == (("past", 8),)


def test_batch_and_resolution_reach_the_graph() -> None:
    space = load_space(
        "resnet", width_mult=0.25, contexts={"batch": (1, 4), "resolution": (32, 64)}
    )
    smallest, largest = space.extremes()
    assert input_dims(space.build(smallest)) == [[1, 3, 32, 32]]
    assert input_dims(space.build(largest)) == [[4, 3, 64, 64]]
    beyond = smallest.at(batch=7, resolution=96)
    assert input_dims(space.build(beyond)) == [[7, 3, 96, 96]]
    assert (space.batch, space.resolution) == (4, 64)


def test_a_resolution_in_either_form_is_what_the_space_has() -> None:
    placed = load_space("ofa", contexts={"resolution": (96, 160)})
    free, fixed = load_space("ofa"), load_space("ofa", resolution=160)
    network = "2*k3e3 | 2*k5e4 | 4*k7e6 | 3*k3e6 | 2*k3e3"
    for side in ("160 px", "160 resolution", "160 px: 160 resolution"):
        given = f"{side}: {network}"
        assert placed.read(given).to_text() == f"160 resolution: {network}"
        assert placed.at(resolution=80).read(given).to_text() == f"80 resolution: {network}"
        assert fixed.read(given).to_text() == network
    for given in (f"160 px: {network}", f"160 resolution: {network}"):
        assert free.read(given).to_text() == f"160 px: {network}"
    for space, given, message in (
        (placed, "128 px: 160 resolution", "has a resolution of its own, 128: leave it out"),
        (fixed, "128 px", "has a resolution of its own, 128: leave it out"),
        (fixed, "128 resolution", "has a context resolution; ofa has none: leave it out"),
        (free, "100 resolution", "resolution is 100; ofa allows 128, 132"),
    ):
        with pytest.raises(InvalidArchitectureError, match=message):
            space.validate(space.read(f"{given}: {network}"))
    with pytest.raises(InvalidSpaceError, match="own here, begin its short form with '224 px: '"):
        free.at(resolution=160)


def test_what_all_architectures_have_is_no_context() -> None:
    space = Reader().at(batch=1)
    assert space.read("1 batch: 8 past: d16; w8").contexts == (("past", 8),)
    with pytest.raises(InvalidSpaceError, match="context 'batch' has one value here"):
        space.at(batch=2)


def test_contexts_that_an_architecture_lacks_are_named_at_once() -> None:
    space = Reader().with_contexts({"batch": (1, 4)})
    with pytest.raises(InvalidArchitectureError) as refused:
        space.validate(space.read("d16; w8"))
    assert str(refused.value) == (
        "the architecture has no past and no batch: begin it with '4 batch: 40 past: ', or with "
        "other values"
    )
    space.validate(space.read("4 batch: 40 past: d16; w8"))


def test_a_free_resolution_becomes_a_context() -> None:
    space = load_space("ofa", contexts={"resolution": (128, 160)})
    architecture = space.extremes()[0]
    assert architecture.resolution is None
    assert architecture.to_text().startswith("128 resolution: ")
    assert space.count() == load_space("ofa", resolution=224).count()
    assert input_dims(space.build(architecture)) == [[1, 3, 128, 128]]


# What is refused


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"pst": (8,)}, r"unknown context 'pst': did you mean 'past'\? choose past, batch$"),
        ({"resolution": (64,)}, "unknown context 'resolution': choose past, batch"),
        (
            {"past": ("abc",)},
            "past=abc: give whole numbers of 1 or more; .* reader are past, batch",
        ),
        ({"past": 0}, "past=0: give whole numbers of 1 or more"),
        ({"past": 99_999_999_999}, "past=99999999999: give whole numbers of 1 to 1073741823"),
        ({"past": (8, 1.5)}, r"past=1\.5: give whole numbers"),
        ({"batch": (5000,)}, "batch=5000: give whole numbers of 1 to 4096"),
        ({"past": (8, 8)}, "past=8,8: give one value or more, each once"),
        ({"past": ()}, "past=: give one value or more, each once"),
    ],
)
def test_other_values_are_refused(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpaceError, match=message):
        Reader().with_contexts(grid)


def test_a_context_that_the_space_lacks_is_refused() -> None:
    varied = "context 'batch' has one value here: .*; varied are past"
    with pytest.raises(InvalidSpaceError, match=varied):
        Reader().at(batch=2)
    with pytest.raises(InvalidSpaceError, match="unknown context 'past': the space has none"):
        load_space("resnet").at(past=2)
    with pytest.raises(InvalidSpaceError, match="choose batch, resolution"):
        load_space("resnet", contexts={"past": 8})
    with pytest.raises(InvalidSpaceError, match=r"past=\[8, 9\]: give whole numbers"):
        Reader().at(past=[8, 9])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "contexts",
    [
        (8, 16),
        {"past": 8},
        {"past": ()},
        {"past": (0,)},
        {"px": (8,)},
        {"hidden": (8,)},
        {"a b": (8,)},
    ],
)
def test_a_class_with_other_contexts_is_refused(contexts: Any) -> None:
    with pytest.raises(InvalidSpaceError, match="context"):
        type("Broken", (Reader,), {"contexts": contexts})()


def test_settings_name_contexts_that_are_not_those_of_the_class() -> None:
    assert "contexts" not in Reader().settings()
    assert Reader().with_contexts({"past": (8, 9)}).settings()["contexts"] == {"past": [8, 9]}
    again = load_space("resnet", contexts={"batch": (1, 2)})
    settings = again.settings()
    assert load_space(settings.pop("name"), **settings).settings() == again.settings()


# Samplers, genes and encodings


@spaces
@pytest.mark.parametrize("sampler", [BalancedSampler, RandomSampler])
def test_samplers_draw_every_value(space: SearchSpace, sampler: type) -> None:
    architectures = sampler(space, depth_bins(space, 3)).sample(80, np.random.default_rng(0))
    for name, values in space.contexts.items():
        assert {dict(a.contexts)[name] for a in architectures} == {*values}


@spaces
def test_genes_hold_the_network_alone(space: SearchSpace) -> None:
    fixed = space.at(**{name: values[0] for name, values in space.contexts.items()})
    genes = GeneEncoding(fixed)
    codes = space.encode(drawn(space, 30))
    placed = genes.to_codes(genes.of_codes(codes))
    expected = space.encode([fixed.read(a) for a in space.decode(codes)])
    np.testing.assert_array_equal(placed, expected)


def test_everything_in_one_context_is_every_network_once() -> None:
    space = Reader().at(past=1500)
    every = np.concatenate([*GeneEncoding(space).everything()])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == len(every) == space.count()


@spaces
def test_neighbours_are_in_every_context(space: SearchSpace) -> None:
    base, *others = space.decode(neighbours(space))
    moved = [other for other in others if other.contexts != base.contexts]
    assert len(moved) == sum(len(values) - 1 for values in space.contexts.values())
    for other in moved:
        assert other.at(**dict(base.contexts)) == base


@spaces
@pytest.mark.parametrize("name", ["fcc", "one-hot", "feature", "statistical", "scaled-fcc"])
def test_encodings_have_a_column_for_the_number(space: SearchSpace, name: str) -> None:
    encoder = make_encoder(name, space)
    architecture = space.extremes()[0]
    for context in space.contexts:
        before, after = encoder.encode([architecture, architecture.at(**{context: 77})])
        place = encoder.columns.index(context)
        assert after[place] == 77
        assert np.flatnonzero(before != after).tolist() == [place]


@spaces
@pytest.mark.parametrize("name", ["cost", "views"])
def test_costs_follow_contexts_that_are_not_drawn(space: SearchSpace, name: str) -> None:
    encoder = make_encoder(name, space)
    assert not {*space.contexts} & {*encoder.columns}
    place = encoder.columns.index("all.mflops")
    for architecture in drawn(space, 3):
        placed = architecture.at(**dict.fromkeys(space.contexts, 101))
        flops = sum(part.flops for part in parts_of(space, placed))
        assert encoder.encode([placed])[0, place] == pytest.approx(flops / 1e6, rel=1e-5)


@spaces
def test_graphs_hold_contexts_in_every_node(space: SearchSpace) -> None:
    encoder = make_encoder("graph", space)
    architecture = space.extremes()[1]
    vector = dict(zip(encoder.columns, encoder.encode([architecture])[0], strict=True))
    for context, values in space.contexts.items():
        assert vector[f"input.{context}"] == vector[f"output.{context}"] == 1
        double = architecture.at(**{context: 2 * max(values) - min(values)})
        place = encoder.columns.index(f"input.{context}")
        assert encoder.encode([double])[0, place] == 2


@spaces
def test_the_table_has_the_parts_of_every_context(space: SearchSpace) -> None:
    architectures = drawn(space, 60)
    architectures += [a.at(**dict.fromkeys(space.contexts, 99)) for a in architectures[:10]]
    table = PartTable(space)
    rows = table.rows(space.encode(architectures))
    for architecture, own in zip(architectures, rows, strict=True):
        found: Counter[str] = Counter()
        for row in own:
            for (_, number), count in table.contents[row].items():
                found[table.parts[number].key] += count
        assert found == Counter(part.key for part in parts_of(space, architecture))


def test_a_lookup_table_has_the_parts_of_its_contexts() -> None:
    space = Reader().with_contexts({"past": (8, 16)})
    encoder = make_encoder("parts", space)
    known = {part.key for part in encoder.parts}
    for architecture in drawn(space, 30):
        assert {part.key for part in parts_of(space, architecture)} <= known
    with pytest.raises(UsageError, match=r"has no part .* of another context"):
        encoder.encode([space.read("17 past: d16; w8")])
