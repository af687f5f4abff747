"""The ONNX graphs of the search spaces against torch, the ONNX checker and ONNX Runtime."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
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
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from esm_models.architecture import Architecture
from esm_models.graph import IR_VERSION, OPSET, WEIGHTLESS_LOCATION, Network
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from tests.models.torch_reference import (
    classes,
    load_onnx_weights,
    reference_network,
    used_edges,
)

Array = NDArray[np.float32]

SPACES = ("resnet", "mobilenetv3", "densenet", "nasbench201", "fbnet", "ofa")
RANDOM_SUBNETS = {"nasbench201": 12, "fbnet": 8, "ofa": 6}
"""20 of the others."""

# Outputs may differ by this share of the largest absolute output.
TOLERANCE = 1e-4

# Damps the 1x1 convolutions that add channels, so that activations keep an order of 1 through
# the residual sums of the deepest subnets.
WIDENING_GAIN = {"resnet": 0.4, "mobilenetv3": 0.8, "densenet": 1.0, "ofa": 0.8}

# Where a sum of many skips, or a chain of pools, gives activations of any size, the classifier's
# weights make up for it.
BALANCED_AT_THE_END = ("nasbench201", "fbnet")
LAST_WEIGHT = "head.linear1.weight"


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

    units = tuple(unit(draw.choice(d)) for d in space.depths)
    return Architecture(space.name, units, max(space.resolutions, default=None))


def is_constant(architecture: Architecture) -> bool:
    """Whether nothing leads from image to output: a cell of NAS-Bench-201 may be cut."""
    return architecture.space == "nasbench201" and not used_edges(architecture.units[0])


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
        gain = WIDENING_GAIN.get(self.space.name, 1.0)

        def weighted(last_gain: float) -> bytes:
            def draw(name: str, shape: tuple[int, ...]) -> Array:
                weights = draw_weights(name, shape, gain)
                return weights * np.float32(last_gain if name == LAST_WEIGHT else 1)

            return self.space.build(self.architecture, draw)

        model = weighted(1)
        if self.space.name in BALANCED_AT_THE_END:
            model = weighted(1 / float(np.abs(run_onnx(model, self.images)).max()))
        return model

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
    resolutions = {"densenet": (64, 96), "fbnet": (32, 64, 128)}.get(name, (32, 64, 96))
    settings = [
        {"resolution": resolution, "width_mult": width_mult, "batch": batch}
        for width_mult, batch, resolution in itertools.product((0.25, 0.5), (1, 2), resolutions)
    ]
    odd = [
        {"resolution": resolution, "width_mult": width_mult, "batch": 1}
        for resolution, width_mult in ((71, 0.5), (101, 0.25))
    ]
    drawn = [settings[i % len(settings)] for i in range(RANDOM_SUBNETS.get(name, 20))] + odd
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
    if is_constant(case.architecture):
        pytest.skip("no edge of the cell leads from its input to its output")
    assert 0.3 < scale < 30
    other = run_onnx(case.weighted, case.images[::-1, :, ::-1, ::-1].copy())
    assert np.abs(case.output - other).max() > 30 * TOLERANCE * scale


def test_weighted_graph_passes_the_checker(case: Case) -> None:
    onnx.checker.check_model(case.weighted_model, full_check=True)


def test_declared_shapes_are_what_onnx_infers(case: Case) -> None:
    batch, side = case.space.batch, case.space.resolution
    model = onnx.load_from_string(case.weightless)
    declared = dims(model.graph.output[0])
    assert declared == (batch, classes(case.space.name, side))
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
    """The smallest subnet, and it with each depth and each option of each unit changed; of
    NAS-Bench-201 the largest, as in the smallest a single edge leads nowhere."""
    base = (largest if space.name == "nasbench201" else smallest)(space).units
    yield Architecture(space.name, base)
    for number, depths in enumerate(space.depths):
        before, after = base[:number], base[number + 1 :]
        for depth in depths:
            if depth != len(base[number]):
                yield Architecture(space.name, (*before, base[number][:1] * depth, *after))
        for option in space.options:
            if option.label == base[number][0]:
                continue
            first = (option.label,)
            rest = base[number][1:]
            if space.one_option_per_unit:
                rest = first * len(rest)
            yield Architecture(space.name, (*before, first + rest, *after))


@pytest.mark.parametrize("name", SPACES)
def test_different_architectures_give_different_graphs(name: str) -> None:
    space = load_space(name, resolution=64)
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


# Scopes and pieces --------------------------------------------------------------------------


def blocks_in(model: onnx.ModelProto) -> set[str]:
    """Scopes of the searchable blocks that have an operator, ``unit1.block2``."""
    scopes = (re.match(r"(unit\d+|stage\d+\.cell\d+)\.block\d+", n.name) for n in model.graph.node)
    return {match[0] for match in scopes if match}


def test_every_operator_has_a_scope_and_every_block_its_own(case: Case) -> None:
    model = case.weighted_model
    scopes = {node.name.rpartition(".")[0] for node in model.graph.node}
    assert "" not in scopes
    units = case.architecture.units
    expected = {
        f"unit{u}.block{b}"
        for u, unit in enumerate(units, start=1)
        for b in range(1, len(unit) + 1)
    }
    if case.space.name == "nasbench201":
        numbers = {(0, 1): 1, (0, 2): 2, (1, 2): 3, (0, 3): 4, (1, 3): 5, (2, 3): 6}
        expected = {
            f"stage{stage}.cell{cell}.block{numbers[edge]}"
            for edge, operation in used_edges(units[0]).items()
            if operation != "skip_connect"
            for stage in (1, 2, 3)
            for cell in range(1, 6)
        }
    elif case.space.name == "fbnet":
        for u, unit in enumerate(units, start=1):
            for b, label in enumerate(unit, start=1):
                if label == "skip" and not (b == 1 and fbnet_resizes(case.space, u)):
                    expected.remove(f"unit{u}.block{b}")
    assert blocks_in(model) == expected


def fbnet_resizes(space: SearchSpace, unit: int) -> bool:
    """Whether a unit's first block changes the shape of the image."""
    narrow, wide = (16, 16, 24, 32, 64, 112, 184, 352)[unit - 1 : unit + 1]
    halves = unit in (3, 4, 6) or (unit == 2 and space.resolution >= 128)
    return halves or space.channels(narrow) != space.channels(wide)


# Known sizes --------------------------------------------------------------------------------


@dataclass
class Counts:
    """Of a graph without squeeze-excite; numbers of one image."""

    weights: int = 0  # of convolutions and the classifier, biases not counted
    channels: int = 0  # that convolutions give: as many means and scales of folded BatchNorm
    macs: int = 0  # of convolutions and the classifier
    conv_outputs: int = 0
    relu_outputs: int = 0
    pooled: int = 0  # numbers that the global pooling takes


def counts(model: onnx.ModelProto) -> dict[str, Counts]:
    """By scope."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)
    shapes = {value.name: dims(value) for value in values}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    result: dict[str, Counts] = {}
    for node in model.graph.node:
        count = result.setdefault(node.name.rpartition(".")[0], Counts())
        numbers = int(np.prod(shapes[node.output[0]]))
        if node.op_type in ("Conv", "Gemm"):
            weights = int(np.prod(shapes[node.input[1]]))
            pixels = int(np.prod(shapes[node.output[0]][2:]))
            count.weights += weights
            count.macs += weights * pixels
        if node.op_type == "Conv":
            count.channels += shapes[node.output[0]][1]
            count.conv_outputs += numbers
        elif node.op_type == "Relu":
            count.relu_outputs += numbers
        elif node.op_type == "GlobalAveragePool":
            count.pooled += int(np.prod(shapes[node.input[0]]))
    return result


def total(by_scope: Mapping[str, Counts], what: str) -> int:
    return sum(getattr(count, what) for count in by_scope.values())


def test_nasbench201_of_3x3_convolutions_has_the_published_size() -> None:
    """1.531546 million parameters and 220.12 million multiply-adds, as the benchmark says."""
    space = load_space("nasbench201")
    by_scope = counts(onnx.load_from_string(space.build(largest(space))))
    # Two numbers of BatchNorm per channel, also in the head; none after the shortcuts' 1x1.
    norms = total(by_scope, "channels") - 32 - 64 + 64
    parameters = total(by_scope, "weights") + 2 * norms + 10
    assert parameters == 1_531_546
    assert total(by_scope, "macs") / 1e6 == pytest.approx(220.12, abs=0.01)


def test_nasbench201_of_nothing_has_the_published_size() -> None:
    space = load_space("nasbench201")
    by_scope = counts(onnx.load_from_string(space.build(smallest(space))))
    norms = total(by_scope, "channels") - 32 - 64 + 64
    assert total(by_scope, "weights") + 2 * norms + 10 == 73_306
    assert total(by_scope, "macs") / 1e6 == pytest.approx(7.78, abs=0.01)


@pytest.fixture(scope="module")
def fbnet_table() -> pd.DataFrame:
    folder = os.environ.get("ESM_DATA") or Path(__file__).parents[2].parent / "shared/data"
    path = Path(folder) / "fbnet.parquet"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return pd.read_parquet(path, columns=["arch", "zc_params", "zc_flops"]).iloc[::250]


# Numbers of the table's block types.
FBNET_TYPES = (
    *("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip"),
)


def test_fbnet_has_the_published_parameters_and_operations(fbnet_table: pd.DataFrame) -> None:
    """Exactly what the table counted: of operations a convolution's multiply-adds, two per number
    that BatchNorm gives, one per number of a ReLU and of the global pooling; the ReLU after a
    block's first 1x1 was not seen, as it was the one after its depthwise convolution."""
    space = load_space("fbnet")
    for row in fbnet_table.itertuples(index=False):
        labels = iter([FBNET_TYPES[int(number)] for number in row.arch.split("_")])
        units = tuple(tuple(next(labels) for _ in range(d)) for (d,) in space.depths)
        model = onnx.load_from_string(space.build(Architecture("fbnet", units)))
        by_scope = counts(model)
        norms = total(by_scope, "channels")
        assert total(by_scope, "weights") + 2 * norms + 100 == row.zc_params
        first = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
        unseen = [
            node.input[0]
            for node in model.graph.node
            if node.op_type == "Relu" and f"{node.input[0].rpartition('1.out')[0]}2.out" in first
        ]
        inferred = onnx.shape_inference.infer_shapes(model)
        shapes = {value.name: dims(value) for value in inferred.graph.value_info}
        operations = (
            total(by_scope, "macs")
            + 2 * total(by_scope, "conv_outputs")
            + total(by_scope, "relu_outputs")
            + total(by_scope, "pooled")
            - sum(int(np.prod(shapes[name])) for name in unseen)
        )
        assert operations == row.zc_flops


def test_fbnet_for_imagenet_has_its_strides_and_head() -> None:
    space = load_space("fbnet", resolution=224)
    model = onnx.load_from_string(space.build(largest(space)))
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {value.name: dims(value) for value in inferred.graph.value_info}
    ends = [f"unit{number}.block{4 if 1 < number < 7 else 1}" for number in range(1, 8)]
    last = {node.name.rpartition(".")[0]: node.output[0] for node in model.graph.node}
    assert [shapes[last[end]] for end in ends] == [
        *[(1, 16, 112, 112), (1, 24, 56, 56), (1, 32, 28, 28), (1, 64, 14, 14)],
        *[(1, 112, 14, 14), (1, 184, 7, 7), (1, 352, 7, 7)],
    ]
    assert {t.name: tuple(t.dims) for t in model.graph.initializer}["head.linear1.weight"] == (
        1000,
        1984,
    )


def ofa_macs(depth: int, kernel: int, expansion: int, resolution: int) -> int:
    """By hand: of a network whose blocks are all alike."""
    side = resolution // 2
    macs = side**2 * (3 * 9 * 16 + 16 * 9 + 16 * 16)  # stem and first block
    channels = 16
    for width, stride, squeezes in (
        *((24, 2, False), (40, 2, True), (80, 2, False), (112, 1, True), (160, 2, True)),
    ):
        for position in range(depth):
            middle = channels * expansion
            macs += side**2 * channels * middle
            side = -(-side // stride) if position == 0 else side
            macs += side**2 * middle * (kernel**2 + width)
            if squeezes:
                squeezed = max(8, (middle // 4 + 4) // 8 * 8)
                squeezed += 8 * (squeezed < 0.9 * (middle / 4))
                macs += 2 * middle * squeezed
            channels = width
    return macs + side**2 * 160 * 960 + 960 * 1280 + 1280 * 1000


@pytest.mark.parametrize(
    ("depth", "label", "kernel", "expansion", "resolution"),
    [(4, "k7e6", 7, 6, 224), (2, "k3e3", 3, 3, 128), (3, "k5e4", 5, 4, 172)],
)
def test_ofa_has_the_multiply_adds_of_its_table(
    depth: int, label: str, kernel: int, expansion: int, resolution: int
) -> None:
    space = load_space("ofa")
    architecture = Architecture("ofa", ((label,) * depth,) * 5, resolution)
    model = onnx.load_from_string(space.build(architecture))
    assert dims(model.graph.input[0]) == (1, 3, resolution, resolution)
    assert total(counts(model), "macs") == ofa_macs(depth, kernel, expansion, resolution)


def test_cells_that_differ_where_nothing_leads_have_one_graph() -> None:
    space = load_space("nasbench201")

    def graph(*cell: str) -> bytes:
        return nameless(space.build(Architecture("nasbench201", (cell,))))

    conv, skip, none = "nor_conv_3x3", "skip_connect", "none"
    assert graph(conv, none, none, skip, none, none) == graph(none, none, none, skip, none, none)
    assert graph(none, none, conv, skip, conv, none) == graph(none, none, none, skip, none, none)
    assert graph(none, conv, none, none, none, none) == graph(none, none, none, none, none, none)
    # A skip on the way is no operator, whichever edge it is on.
    assert graph(conv, none, none, none, skip, none) != graph(skip, none, none, none, conv, none)
    assert graph(none, skip, none, none, none, skip) == graph(none, none, none, skip, none, none)


def test_an_architecture_s_own_resolution_is_that_of_its_graph() -> None:
    units = smallest(load_space("ofa", resolution=64)).units
    free, pinned = load_space("ofa"), load_space("ofa", resolution=128)
    own = free.build(Architecture("ofa", units, 128))
    assert nameless(own) == nameless(pinned.build(Architecture("ofa", units)))
    assert own != free.build(Architecture("ofa", units, 132))


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


@pytest.mark.parametrize("side", [7, 8, 9, 32])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_same_average_pool_keeps_the_side_over_the_stride(
    kernel: int, stride: int, side: int
) -> None:
    kept, inferred = operator_shapes("same_average_pool", side, kernel=kernel, stride=stride)
    assert kept == inferred == (1, 8, -(-side // stride), -(-side // stride))


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (2, 2, 7), (2, 2, 8), (3, 2, 8)])
def test_same_average_pool_counts_no_padding(kernel: int, stride: int, side: int) -> None:
    net = Network((1, 3, side, side))
    model = net.serialize("pool", net.same_average_pool(net.input, kernel, stride))
    assert np.allclose(run_onnx(model, np.ones((1, 3, side, side), np.float32)), 1)


def test_shuffle_takes_the_groups_in_turns() -> None:
    net = Network((2, 6, 1, 1))
    model = net.serialize("shuffle", net.shuffle(net.input, 2))
    images = np.arange(12, dtype=np.float32).reshape(2, 6, 1, 1)
    assert run_onnx(model, images).ravel().tolist() == [
        *[0, 3, 1, 4, 2, 5],
        *[6, 9, 7, 10, 8, 11],
    ]


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
