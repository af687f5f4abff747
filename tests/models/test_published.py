"""Published spaces with choices of units or of the network, against torch modules."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from esm_host.sampling.random import RandomSampler
from esm_models.architecture import Architecture
from esm_models.errors import InvalidSpaceError
from esm_models.part_table import Rule, part_table
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights
from tests.helpers import depth_bins
from tests.models.torch_published import published_network

NAMES = ("ofa-resnet50", "proxyless", "autoformer", "mobilenetv4", "detector")
TOLERANCE = 1e-4


def small(name: str) -> SearchSpace:
    return load_space(name, resolution=64, width_mult=0.25)


def some(space: SearchSpace, n: int) -> list[Architecture]:
    drawn = RandomSampler(space, depth_bins(space, 1)).sample(n - 2, np.random.default_rng(0))
    return [*space.extremes(), *drawn]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_agree_with_torch(name: str) -> None:
    space = small(name)
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    for architecture in some(space, 20):
        model = space.build(architecture, draw_weights)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: images})
        proto = onnx.load_from_string(model)
        network = published_network(architecture, 64, 0.25, proto)
        with torch.inference_mode():
            expected = network(torch.from_numpy(images)).numpy()
        scale = np.abs(expected).max()
        assert scale > 0.1
        np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE * scale)
        if name == "detector":  # distances are larger than scores
            scores, wanted = output[..., 4:], expected[..., 4:]
            assert 0 <= wanted.min() < 0.4 < 0.6 < wanted.max() <= 1
            np.testing.assert_allclose(scores, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_looked_up(name: str) -> None:
    space = small(name)
    table = part_table(space)
    table.rows(space.encode(some(space, 200)))
    assert table.rule is not Rule.WHOLE
    table.complete()


def test_the_numbers_of_networks_are_those_published() -> None:
    per_unit = sum(9**depth for depth in (2, 3, 4))
    assert load_space("proxyless", resolution=224).count() == per_unit**5 * 9
    blocks = sum(4**depth for depth in (12, 13, 14))
    assert load_space("autoformer").count() == 3 * blocks


def test_the_numbers_of_networks_are_those_of_the_grids() -> None:
    depths = ((1, 2, 3), (4, 6, 8), (7, 9, 11))
    units = [sum(27**depth for depth in each) for each in depths]
    assert load_space("mobilenetv4").count() == math.prod(units)
    blocks = 4 + 4**2 + 4**3
    assert load_space("detector").count() == (3 * blocks) ** 4 * blocks


def test_mobilenetv2_has_relu6() -> None:
    space = small("proxyless")
    net, _ = space.trace(space.extremes()[1])
    found = Counter(node.op_type for node in net.nodes)
    assert "Relu" not in found
    assert found["Clip"] == found["Conv"] - (1 + space.max_depth)  # all but projections


def test_the_last_depthwise_convolution_of_mobilenetv4_has_the_stride() -> None:
    space = load_space("mobilenetv4", resolution=64)
    others = " | 4*s0m3e2 | 7*s0m3e2"
    for label, conv in (("s3m5e2", 3), ("s0m5e2", 2), ("s3m0e2", 1), ("s0m0e2", 1)):
        net, _ = space.trace(space.read(label + others))
        block = [n for n in net.nodes if n.name.startswith("unit1.block1.conv")]
        sides = {node.name.rpartition(".")[2]: net.shape(node.output[0])[2] for node in block}
        halved = [number for number in range(1, len(sides) + 1) if sides[f"conv{number}"] == 8]
        assert min(halved) == conv, label


def test_the_neck_of_the_detector_reads_three_stages() -> None:
    space = load_space("detector", resolution=64)
    net, output = space.trace(space.extremes()[1])
    assert net.shape(output) == (1, 8 * 8 + 4 * 4 + 2 * 2, 4 + 80)
    makers = {name: node.name for node in net.nodes for name in node.output}
    read = {
        makers[name].partition(".")[0]
        for node in net.nodes
        if node.name.startswith("unit5.")
        for name in node.input
        if name in makers
    }
    assert read == {"unit2", "unit3", "unit4", "unit5"}


@pytest.mark.parametrize("resolution", [31, 33, 100])
def test_a_resolution_of_the_detector_is_a_multiple_of_32(resolution: int) -> None:
    with pytest.raises(InvalidSpaceError, match=f"^resolution {resolution} .*detector: give"):
        load_space("detector", resolution=resolution)
