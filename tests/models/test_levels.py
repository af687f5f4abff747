"""Search spaces with choices of the network, of units and of blocks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_host.encoding import ENCODERS, make_encoder
from esm_host.encoding.base import Encoder
from esm_host.errors import UsageError
from esm_host.predictors.lookup import neighbours
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.search.genes import GeneEncoding
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError, InvalidSpaceError
from esm_models.part_table import PartTable
from esm_models.parts import parts_of
from esm_models.space import Feature, SearchSpace, Unit
from tests.models.level_spaces import StagedSpace, UnequalSpace

SPACES = (StagedSpace(), UnequalSpace())
spaces = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


def drawn(space: SearchSpace, n: int, seed: int = 0) -> list[Architecture]:
    bins = DepthBins.by_default(space.min_depth, space.max_depth)
    return BalancedSampler(space, bins).sample(n, np.random.default_rng(seed))


@spaces
@given(seed=st.integers(0, 2**32 - 1))
def test_an_architecture_survives_json_short_form_codes_and_genes(
    space: SearchSpace, seed: int
) -> None:
    architectures = drawn(space, 5, seed)
    codes = space.encode(architectures)
    genes = GeneEncoding(space)
    assert space.decode(codes) == architectures
    assert not space.outside(codes).any()
    np.testing.assert_array_equal(genes.to_codes(genes.of_codes(codes)), codes)
    for architecture in architectures:
        assert Architecture.from_json(architecture.to_json()) == architecture
        assert space.read(architecture.to_text()) == architecture


@spaces
def test_count_is_the_number_of_different_networks(space: SearchSpace) -> None:
    every = np.concatenate([*GeneEncoding(space).everything()])
    assert space.count() == len(every) == len(np.unique(every.reshape(len(every), -1), axis=0))


@spaces
@pytest.mark.parametrize("sampler", [BalancedSampler, RandomSampler])
def test_samplers_reach_every_choice(space: SearchSpace, sampler: type) -> None:
    bins = DepthBins.by_default(space.min_depth, space.max_depth)
    codes = space.encode(sampler(space, bins).sample(300, np.random.default_rng(0)))
    for choice, size in enumerate(space.choice_sizes):
        assert {*space.choices_of(codes)[:, choice].tolist()} == {*range(size)}
    for unit, options in enumerate(space.block_options):
        assert {*space.blocks_of(codes)[:, unit].ravel().tolist()} - {-1} == {*options.tolist()}


def test_choices_reach_the_network() -> None:
    space = StagedSpace()
    narrow, wide = (space.read(f"s8; {width}: 2*k3e1 | w40: k3e1") for width in ("w16", "w32"))
    net, _ = space.trace(wide)
    widths = [net.shape(node.output[0])[1] for node in net.nodes if node.op_type == "Conv"]
    assert widths == [8, 32, 32, 32, 32, 40, 40]
    assert narrow.key != wide.key


def test_the_choice_of_a_unit_without_blocks_has_one_form() -> None:
    space = UnequalSpace()
    one = space.read("32 px: s8relu; w16: - | w40: e1/4k3 | k3")
    space.validate(one)
    for own, label in (("w24: -", "w24"), ("-", "")):
        other = space.read(f"32 px: s8relu; {own} | w40: e1/4k3 | k3")
        said = f"choice of unit 1 is '{label}', and it has no blocks: write it as 'w16: -'$"
        with pytest.raises(InvalidArchitectureError, match=said):
            space.validate(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s8; w16: 2*k3e1 | w40: k7e1", "unit 2 has a block 'k7e1'"),
        ("s8; w16: 2*k3e1 | k3e1", "choice of unit 2 is ''; staged allows w40, w48"),
        ("s8; 2*k3e1 | k3e1", "0 unit choices; staged has 2"),
        ("w16: 2*k3e1 | w40: k3e1", "choice of the network is ''; staged allows s8, s16"),
        ("s9; w16: 2*k3e1 | w40: k3e1", "choice of the network is 's9'"),
    ],
)
def test_an_architecture_outside_of_the_space_is_refused(text: str, message: str) -> None:
    space = StagedSpace()
    with pytest.raises(InvalidArchitectureError, match=message):
        space.validate(space.read(text))


@spaces
def test_equal_encodings_need_equal_choices(space: SearchSpace) -> None:
    architectures = drawn(space, 60)
    for name in ENCODERS:
        encoder = _encoder(name, space)
        if encoder is None:
            continue
        encoded = encoder.encode(architectures)
        assert encoded.shape == (60, len(encoder.columns)), name
        if name in ("one-hot", "operation-one-hot", "graph", "views", "codes"):
            assert len(np.unique(encoded, axis=0)) == 60, name


def _encoder(name: str, space: SearchSpace) -> Encoder | None:
    try:
        return make_encoder(name, space)
    except (UsageError, InvalidSpaceError):
        return None  # path needs a wiring; parts may be too many to list


@spaces
def test_the_table_has_the_parts_of_every_architecture(space: SearchSpace) -> None:
    architectures = drawn(space, 100)
    table = PartTable(space)
    for architecture, rows in zip(
        architectures, table.rows(space.encode(architectures)), strict=True
    ):
        found: Counter[str] = Counter()
        for row in rows:
            for (_, number), count in table.contents[row].items():
                found[table.parts[number].key] += count
        assert found == Counter(part.key for part in parts_of(space, architecture))


def test_parts_are_found_by_the_choices_that_matter() -> None:
    table = PartTable(StagedSpace())
    table.complete()
    known = len(table.parts)
    assert len(table.contents) < 400  # of 338,688 architectures
    table.rows(StagedSpace().encode(drawn(StagedSpace(), 200, seed=1)))
    assert len(table.parts) == known


@spaces
def test_neighbours_change_one_choice(space: SearchSpace) -> None:
    codes = neighbours(space)
    assert not space.outside(codes).any()
    changes = (space.choices_of(codes) != space.choices_of(codes)[:1]).sum(axis=1)
    assert {*changes.tolist()} == {0, 1}


def test_a_choice_with_a_separator_in_its_label_is_refused() -> None:
    class Broken(StagedSpace):
        choices = (Feature("stem", "s;", (8,)),)

    with pytest.raises(InvalidSpaceError, match="without spaces"):
        Broken().check_options()


def test_units_that_are_no_units_are_refused() -> None:
    class Broken(StagedSpace):
        units = ((1, 2),)  # type: ignore[assignment]

    with pytest.raises(InvalidSpaceError, match="give a tuple of Unit"):
        Broken()


def test_a_space_of_equal_units_is_the_short_form_of_units() -> None:
    features = (Feature("kernel", "k", (3, 5)),)

    class Long(StagedSpace):
        units = (Unit((1, 2), features), Unit((1, 2), features))
        choices = ()

    class Short(StagedSpace):
        units = ()
        depths = ((1, 2), (1, 2))
        choices = ()

    Short.features = features
    assert Long().count() == Short().count()
    for name in ("fcc", "one-hot", "feature"):
        assert make_encoder(name, Long()).columns == make_encoder(name, Short()).columns
    architectures = drawn(Long(), 20)
    assert drawn(Short(), 20) == architectures
