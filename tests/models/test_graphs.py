"""The ONNX graphs of the search spaces against torch, the ONNX checker and ONNX Runtime."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from esm_models.architecture import Architecture
from esm_models.graph import IR_VERSION, OPSET, WEIGHTLESS_LOCATION, Network
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from tests.models.torch_reference import CLASSES, load_onnx_weights, reference_network

Array = NDArray[np.float32]

SPACES = ("resnet", "mobilenetv3", "densenet")
RANDOM_SUBNETS = 20

# Outputs may differ by this share of the largest absolute output.
TOLERANCE = 1e-4

# Damps the 1x1 convolutions that add channels, so that activations keep an order of 1 through
# the residual sums of the deepest subnets.
WIDENING_GAIN = {"resnet": 0.4, "mobilenetv3": 0.8, "densenet": 1.0}


# Architectures and weights ------------------------------------------------------------------


def uniform_architecture(space: SearchSpace, depths: list[int], label: str) -> Architecture:
    return Architecture(space.name, tuple((label,) * depth for depth in depths))


def smallest(space: SearchSpace) -> Architecture:
    return uniform_architecture(space, [min(d) for d in space.depths], space.options[0].label)


def largest(space: SearchSpace) -> Architecture:
    return uniform_architecture(space, [max(d) for d in space.depths], space.options[-1].label)


def random_architecture(space: SearchSpace, seed: str) -> Architecture:
    draw = random.Random(seed)
    labels = [option.label for option in space.options]

    def unit(depth: int) -> tuple[str, ...]:
        if space.one_option_per_unit:
            return (draw.choice(labels),) * depth
        return tuple(draw.choice(labels) for _ in range(depth))

    return Architecture(space.name, tuple(unit(draw.choice(d)) for d in space.depths))


def draw_weights(name: str, shape: tuple[int, ...], widening_gain: float = 1.0) -> Array:
    """He-normal weights, small biases and means, scales and variances in [0.5, 1.5]."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith((".scale", ".variance")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith((".bias", ".mean")):
        return 0.2 * rng.standard_normal(shape, dtype=np.float32)
    gain = widening_gain if shape[2:] == (1, 1) and shape[0] > shape[1] else 1.0
    std = np.float32(gain * np.sqrt(2 / np.prod(shape[1:])))
    return std * rng.standard_normal(shape, dtype=np.float32)


# Cases --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A subnet with its settings, and what is built from it once."""

    space: SearchSpace
    architecture: Architecture

    @cached_property
    def weighted(self) -> bytes:
        gain = WIDENING_GAIN[self.space.name]
        return self.space.build(
            self.architecture, lambda name, shape: draw_weights(name, shape, gain)
        )

    @cached_property
    def weighted_model(self) -> onnx.ModelProto:
        return onnx.load_from_string(self.weighted)

    @cached_property
    def weightless(self) -> bytes:
        return self.space.build(self.architecture)

    @cached_property
    def arrays(self) -> dict[str, Array]:
        return {
            tensor.name: onnx.numpy_helper.to_array(tensor)
            for tensor in self.weighted_model.graph.initializer
        }

    @cached_property
    def images(self) -> Array:
        shape = (self.space.batch, 3, self.space.resolution, self.space.resolution)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    @cached_property
    def output(self) -> Array:
        """What ONNX Runtime makes of the weighted graph."""
        return run_onnx(self.weighted, self.images)


def cases_of(name: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(label, which subnet, settings): both ends of the space, then random subnets."""
    resolutions = (64, 96) if name == "densenet" else (32, 64, 96)
    settings = [
        {"resolution": resolution, "width_mult": width_mult, "batch": batch}
        for width_mult, batch, resolution in itertools.product((0.25, 0.5), (1, 2), resolutions)
    ]
    odd = [
        {"resolution": resolution, "width_mult": width_mult, "batch": 1}
        for resolution, width_mult in ((71, 0.5), (101, 0.25))
    ]
    drawn = [settings[i % len(settings)] for i in range(RANDOM_SUBNETS)] + odd
    subnets = [("smallest", settings[0]), ("largest", settings[2])]
    subnets += [(f"random{i}", chosen) for i, chosen in enumerate(drawn)]
    for subnet, chosen in subnets:
        yield f"{name}-{subnet}-" + "-".join(f"{v:g}" for v in chosen.values()), subnet, chosen


CASES = {
    label: (name, subnet, settings) for name in SPACES for label, subnet, settings in cases_of(name)
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    name, subnet, settings = CASES[request.param]
    space = load_space(name, **settings)
    ends = {"smallest": smallest, "largest": largest}
    if subnet in ends:
        return Case(space, ends[subnet](space))
    return Case(space, random_architecture(space, f"{name} {subnet}"))


@pytest.fixture(scope="module", params=SPACES)
def small_case(request: pytest.FixtureRequest) -> Case:
    """The smallest subnet of each space, for what does not depend on the subnet."""
    space = load_space(request.param, resolution=64, width_mult=0.25)
    return Case(space, smallest(space))


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_onnx(
    model: bytes | str, images: Array, external: Mapping[str, Array] | None = None
) -> Array:
    """Output of a model in ONNX Runtime on the CPU, with arrays for external initializers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if external is not None:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in external.values()]
        options.add_external_initializers(list(external), values)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(["output"], {"input": images})
    return output


def assert_close(actual: Array, expected: Array) -> None:
    """Equal within TOLERANCE of the largest absolute expected value."""
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    assert np.abs(actual - expected).max() <= TOLERANCE * scale


def dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def nameless(model: bytes) -> bytes:
    """The model without the graph's name, which carries the architecture's key."""
    proto = onnx.load_from_string(model)
    proto.graph.name = ""
    return proto.SerializeToString(deterministic=True)


# Every subnet -------------------------------------------------------------------------------


def test_output_agrees_with_torch(case: Case) -> None:
    network = reference_network(
        case.architecture, case.space.resolution, case.space.width_mult, case.weighted_model
    )
    with torch.inference_mode():
        expected = network(torch.from_numpy(case.images)).numpy()
    assert_close(case.output, expected)


def test_output_is_of_order_one_and_depends_on_the_image(case: Case) -> None:
    """Otherwise a comparison of outputs would overlook biases, or everything but biases."""
    scale = np.abs(case.output).max()
    assert 0.3 < scale < 30
    other = run_onnx(case.weighted, case.images[::-1, :, ::-1, ::-1].copy())
    assert np.abs(case.output - other).max() > 0.01 * scale


def test_weighted_graph_passes_the_checker(case: Case) -> None:
    onnx.checker.check_model(case.weighted_model, full_check=True)


def test_declared_shapes_are_what_onnx_infers(case: Case) -> None:
    batch, side = case.space.batch, case.space.resolution
    model = onnx.load_from_string(case.weightless)
    declared = dims(model.graph.output[0])
    assert declared == (batch, CLASSES)
    assert dims(model.graph.input[0]) == (batch, 3, side, side)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert dims(inferred.graph.output[0]) == declared


def test_weightless_graph_differs_only_in_the_data(case: Case) -> None:
    weighted = onnx.load_from_string(case.weighted)
    weightless = onnx.load_from_string(case.weightless)
    for tensor in weighted.graph.initializer:
        assert len(tensor.raw_data) == 4 * np.prod(tensor.dims)
        tensor.ClearField("raw_data")
    for tensor in weightless.graph.initializer:
        assert tensor.data_location == TensorProto.EXTERNAL
        assert [(entry.key, entry.value) for entry in tensor.external_data] == [
            ("location", WEIGHTLESS_LOCATION)
        ]
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    assert weightless == weighted


def test_weightless_graph_passes_the_checker_beside_a_placeholder(
    case: Case, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(case.weightless)
    (tmp_path / WEIGHTLESS_LOCATION).touch()
    onnx.checker.check_model(str(path), full_check=True)


def test_weightless_graph_runs_with_arrays_supplied(case: Case) -> None:
    assert_close(run_onnx(case.weightless, case.images, case.arrays), case.output)


# Weightless graphs --------------------------------------------------------------------------


def test_weightless_file_runs_with_arrays_supplied(small_case: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_case.weightless)
    output = run_onnx(str(path), small_case.images, small_case.arrays)
    assert_close(output, small_case.output)


@pytest.mark.parametrize("source", ["bytes", "file"])
def test_weightless_graph_is_refused_without_arrays(
    small_case: Case, tmp_path: Path, source: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_case.weightless)
    model = small_case.weightless if source == "bytes" else str(path)
    with pytest.raises(Exception, match=r"(?i)external data"):
        run_onnx(model, small_case.images)


def test_weightless_graph_of_the_largest_resnet_is_small() -> None:
    space = load_space("resnet")
    assert len(space.build(largest(space))) < 64 * 1024


def test_weightless_graph_size_does_not_depend_on_the_width() -> None:
    narrow, wide = load_space("resnet", width_mult=0.25), load_space("resnet", width_mult=4)
    sizes = [len(space.build(largest(space))) for space in (narrow, wide)]
    assert abs(sizes[1] - sizes[0]) < 0.05 * sizes[0]


def test_graph_declares_its_opset_and_ir_version(small_case: Case) -> None:
    model = small_case.weighted_model
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION


# Same architecture, same bytes --------------------------------------------------------------

HASH_BUILDS = """
import hashlib, sys
from tests.models.test_graphs import SPACES, build_digest
print("\\n".join(build_digest(name) for name in SPACES))
"""


def build_digest(name: str) -> str:
    """SHA-256 of a random subnet's weightless and weighted graphs."""
    space = load_space(name, resolution=64, width_mult=0.25, batch=2)
    architecture = random_architecture(space, "digest")
    models = space.build(architecture), space.build(architecture, draw_weights)
    return hashlib.sha256(b"".join(models)).hexdigest()


def test_same_architecture_gives_the_same_bytes(case: Case) -> None:
    space = load_space(
        case.space.name,
        resolution=case.space.resolution,
        width_mult=case.space.width_mult,
        batch=case.space.batch,
    )
    again = Architecture.from_json(case.architecture.to_json())
    assert space.build(again) == case.weightless


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_bytes_do_not_depend_on_the_process(hash_seed: str) -> None:
    environment = os.environ | {
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    result = subprocess.run(
        [sys.executable, "-c", HASH_BUILDS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [build_digest(name) for name in SPACES]


def single_changes(space: SearchSpace) -> Iterator[Architecture]:
    """The smallest subnet, and it with each depth and each option of each unit changed."""
    base = smallest(space).units
    yield Architecture(space.name, base)
    for number, depths in enumerate(space.depths):
        before, after = base[:number], base[number + 1 :]
        for depth in depths:
            if depth != len(base[number]):
                yield Architecture(space.name, (*before, base[number][:1] * depth, *after))
        for option in space.options[1:]:
            first = (option.label,)
            rest = base[number][1:]
            if space.one_option_per_unit:
                rest = first * len(rest)
            yield Architecture(space.name, (*before, first + rest, *after))


@pytest.mark.parametrize("name", SPACES)
def test_different_architectures_give_different_graphs(name: str) -> None:
    space = load_space(name)
    architectures = list(single_changes(space))
    graphs = {nameless(space.build(architecture)) for architecture in architectures}
    assert len(graphs) == len(set(architectures)) == len(architectures)


def test_settings_give_different_graphs() -> None:
    settings = [{}, {"resolution": 96}, {"width_mult": 0.5}, {"batch": 2}]
    graphs = set()
    for changed in settings:
        space = load_space("resnet", **{"resolution": 64, "width_mult": 0.25, **changed})
        graphs.add(space.build(smallest(space)))
    assert len(graphs) == len(settings)


# Operators ----------------------------------------------------------------------------------


def operator_shapes(operator: str, side: int, **settings: int) -> tuple[tuple[int, ...], ...]:
    """(kept by the network, inferred by ONNX) for one operator on a square image."""
    net = Network((1, 8, side, side))
    output = getattr(net, operator)(net.input, **settings)
    model = onnx.load_from_string(net.serialize("operator", output))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return net.shape(output), dims(inferred.graph.output[0])


@pytest.mark.parametrize("side", [7, 8, 9, 32])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
@pytest.mark.parametrize("operator", ["conv", "max_pool"])
def test_odd_kernels_keep_the_side_over_the_stride(
    operator: str, kernel: int, stride: int, side: int
) -> None:
    channels = {"channels": 8} if operator == "conv" else {}
    kept, inferred = operator_shapes(operator, side, kernel=kernel, stride=stride, **channels)
    assert kept == inferred == (1, 8, -(-side // stride), -(-side // stride))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operator", ["conv", "max_pool"])
def test_even_kernels_keep_the_side_over_the_stride(operator: str, stride: int) -> None:
    channels = {"channels": 8} if operator == "conv" else {}
    kept, inferred = operator_shapes(operator, 8, kernel=2, stride=stride, **channels)
    assert kept == inferred == (1, 8, 8 // stride, 8 // stride)


@pytest.mark.parametrize("side", [7, 8])
def test_average_pool_drops_the_rest_at_the_border(side: int) -> None:
    kept, inferred = operator_shapes("average_pool", side, kernel=2)
    assert kept == inferred == (1, 8, side // 2, side // 2)


# The reference ------------------------------------------------------------------------------


def drop_last_layer(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]


def swap_dimensions(model: onnx.ModelProto) -> None:
    shape = model.graph.initializer[0].dims
    shape[0], shape[1] = shape[1], shape[0]


def add_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(
        onnx.numpy_helper.from_array(np.zeros(1, np.float32), "stray")
    )


@pytest.mark.parametrize("damage", [drop_last_layer, swap_dimensions, add_initializer])
def test_loading_weights_refuses_another_network(
    damage: Callable[[onnx.ModelProto], None],
) -> None:
    space = load_space("resnet", resolution=32, width_mult=0.25)
    case = Case(space, smallest(space))
    network = reference_network(case.architecture, 32, 0.25, case.weighted_model)
    damaged = onnx.load_from_string(case.weighted)
    damage(damaged)
    with pytest.raises(ValueError, match=r"layers|shapes|without a layer"):
        load_onnx_weights(network, damaged)
