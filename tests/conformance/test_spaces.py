"""Suite of search spaces."""

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from esm_host.sampling import make_sampler
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError
from esm_models.parts import REST, parts_of
from esm_models.space import SearchSpace
from esm_models.spaces import SPACES, load_space
from esm_protos.weights import draw_weights
from tests.helpers import depth_bins

BUILTIN = list(SPACES)
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


@pytest.fixture
def space(plugin: str) -> SearchSpace:
    return load_space(plugin)


@pytest.fixture
def small(space: SearchSpace) -> dict[str, Any]:
    """Settings that make networks quick."""
    return {"resolution": max(space.min_resolution, 32), "width_mult": 0.25}


@pytest.fixture
def drawn(space: SearchSpace) -> list[Architecture]:
    """Some of all depths, the smallest and the largest."""
    sampler = make_sampler("balanced", space, depth_bins(space, 3))
    return [*space.extremes(), *sampler.sample(6, np.random.default_rng(0))]


def test_architectures_are_valid_and_come_back_from_codes(
    space: SearchSpace, drawn: list[Architecture]
) -> None:
    for architecture in drawn:
        space.validate(architecture)
    assert space.decode(space.encode(drawn)) == drawn
    assert space.count() >= len({a.key for a in drawn})


def test_architectures_come_back_from_json_and_the_short_form(
    space: SearchSpace, drawn: list[Architecture]
) -> None:
    for architecture in drawn:
        stored = json.loads(json.dumps(architecture.to_json()))
        assert Architecture.from_json(stored) == architecture
        assert space.read(architecture.to_text()) == architecture


def test_other_spaces_and_options_are_refused(space: SearchSpace) -> None:
    units = space.extremes()[0].units
    with pytest.raises(InvalidArchitectureError, match="is of space"):
        space.validate(Architecture("another", units))
    with pytest.raises(InvalidArchitectureError):
        space.validate(Architecture(space.name, (("no such option",), *units[1:])))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_networks_run_and_differ(plugin: str, small: dict[str, Any], dtype: str) -> None:
    space = load_space(plugin, **small, dtype=dtype)
    graphs = [space.build(architecture, draw_weights) for architecture in space.extremes()]
    assert len(set(graphs)) == len(graphs)
    for graph in graphs:
        onnx.checker.check_model(onnx.load_from_string(graph))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        given = {each.name: np.ones(each.shape, TYPES[each.type]) for each in session.get_inputs()}
        if "input" in given:
            side = small["resolution"]
            assert given["input"].shape == (1, 3, side, side)
        assert all(np.isfinite(output).all() for output in session.run(None, given))


def test_a_batch_is_the_first_dimension(plugin: str, small: dict[str, Any]) -> None:
    space = load_space(plugin, **small, batch=2)
    graph = onnx.load_from_string(space.build(space.extremes()[0])).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_value == 2


def test_every_unit_has_operators_of_its_own(space: SearchSpace) -> None:
    """Else encodings by unit, and lookup tables, cannot tell whose work it is."""
    regions = {part.region for part in parts_of(space, space.extremes()[1])} - {REST}
    assert len(regions) >= space.unit_count
