"""Published spaces with choices of units or of the network, against torch modules."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from esm_host.sampling.random import RandomSampler
from esm_models.architecture import Architecture
from esm_models.errors import InvalidSpaceError
from esm_models.part_table import Rule, part_table
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from tests.helpers import depth_bins
from tests.host.exporting.test_export import moderate
from tests.models.torch_published import published_network

NAMES = (
    *("ofa-resnet50", "proxyless", "autoformer", "mobilenetv4", "detector"),
    *("hat", "hat-encoder", "hat-step"),
)
TOLERANCE = 1e-4
TOKENS = 1000


def small(name: str) -> SearchSpace:
    return load_space(name, resolution=64, width_mult=0.25)


def some(space: SearchSpace, n: int) -> list[Architecture]:
    drawn = RandomSampler(space, depth_bins(space, 1)).sample(n - 2, np.random.default_rng(0))
    return [*space.extremes(), *drawn]


def values(session: onnxruntime.InferenceSession, seed: int = 0) -> dict[str, NDArray]:
    """Normal numbers, and tokens, for each input."""
    rng = np.random.default_rng(seed)
    return {
        each.name: rng.integers(TOKENS, size=each.shape)
        if each.type == "tensor(int64)"
        else rng.standard_normal(each.shape, dtype=np.float32)
        for each in session.get_inputs()
    }


@pytest.mark.parametrize("name", NAMES)
def test_outputs_agree_with_torch(name: str) -> None:
    space = small(name)
    for architecture in some(space, 20):
        model = space.build(architecture, moderate)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        given = values(session)
        output, *_ = session.run(None, given)
        proto = onnx.load_from_string(model)
        network = published_network(architecture, 64, 0.25, proto)
        with torch.inference_mode():
            expected = network(*map(torch.from_numpy, given.values())).numpy()
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
    encoders, decoders = 2 * 6**6, 2 * sum(36**depth for depth in range(1, 7))
    assert load_space("hat-encoder").count() == encoders
    assert load_space("hat-step").count() == decoders
    assert load_space("hat").count() == encoders * decoders  # "about 10^15"


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


def test_a_position_of_hats_decoder_reads_no_later_token() -> None:
    space = small("hat")
    model = space.build(space.extremes()[1], moderate)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = values(session)
    (before,) = session.run(None, given)
    given["target"] = given["target"].copy()
    given["target"][:, 40:] += 1
    (after,) = session.run(None, given)
    np.testing.assert_allclose(after[:, :40], before[:, :40], atol=1e-5 * np.abs(before).max())
    assert np.abs(after[:, 40:] - before[:, 40:]).max() > 1e-3 * np.abs(before).max()


def test_hats_decoder_reads_as_many_encoder_layers_as_its_layer_chooses() -> None:
    space = load_space("hat", resolution=10)
    for layers in (1, 2, 3):
        labels = (("f1024h4",) * 6, (f"f1024h4c4l{layers}",))
        architecture = Architecture("hat", labels, unit_choices=("d512", "d640"))
        net, _ = space.trace(architecture)
        keys = [
            net.shape(node.input[1])
            for node in net.nodes
            if node.op_type == "Attention" and node.name.startswith("unit2")
        ]
        assert keys == [(1, 10, 512), (1, 10 * layers, 512)]
