"""Published spaces with choices of units or of the network, against torch modules."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from esm_host.sampling.random import RandomSampler
from esm_models.architecture import Architecture
from esm_models.part_table import Rule, part_table
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from tests.helpers import depth_bins
from tests.host.exporting.test_export import moderate
from tests.models.torch_published import published_network

NAMES = (
    *("ofa-resnet50", "proxyless", "autoformer"),
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
