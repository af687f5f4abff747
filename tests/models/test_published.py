"""Published spaces with choices of units or of the network, against torch modules."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from esm_host.sampling.random import RandomSampler
from esm_models.architecture import Architecture
from esm_models.part_table import Rule, part_table
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights
from tests.helpers import depth_bins
from tests.models.torch_published import published_network

NAMES = ("ofa-resnet50", "proxyless", "autoformer")
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
