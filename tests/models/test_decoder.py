"""Language models, against torch, and as they read a prompt at once and token by token."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from esm_host.encoding.cost import CostEncoder
from esm_host.sampling.random import RandomSampler
from esm_models.architecture import Architecture
from esm_models.part_table import Rule, part_table
from esm_models.parts import parts_of
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights
from tests.helpers import depth_bins
from tests.models.torch_published import Llama, load_in_order

NAMES = ("lm-prefill", "lm-decode")
TOLERANCE = 1e-4
VOCABULARY = 300


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esm_models.spaces.decoder.DecoderSpace.vocabulary", VOCABULARY)


def small(name: str, **settings: int) -> SearchSpace:
    values = (5, 9) if name == "lm-prefill" else (3, 7)
    (context,) = load_space(name).contexts
    return load_space(name, width_mult=0.125, contexts={context: values}, **settings)


def some(space: SearchSpace, n: int) -> list[Architecture]:
    drawn = RandomSampler(space, depth_bins(space, 1)).sample(n - 2, np.random.default_rng(0))
    return [*space.extremes(), *drawn]


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def fed(model: bytes, past: int) -> dict[str, NDArray]:
    rng = np.random.default_rng(0)
    given: dict[str, NDArray] = {}
    for value in onnx.load_from_string(model).graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        given[value.name] = rng.standard_normal(shape, dtype=np.float32)
    batch, new = given["tokens"].shape
    given["tokens"] = rng.integers(0, VOCABULARY, (batch, new))
    given["positions"] = np.tile(past + np.arange(new), (batch, 1))
    return given


def close(actual: NDArray, expected: NDArray) -> None:
    scale = np.abs(expected).max()
    assert actual.shape == expected.shape
    assert scale > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_agree_with_torch(name: str) -> None:
    space = small(name, batch=2)
    for architecture in some(space, 20):
        model = space.build(architecture, draw_weights)
        given = fed(model, dict(architecture.contexts).get("past", 0))
        network = Llama(architecture, 0.125, VOCABULARY)
        load_in_order(network, onnx.load_from_string(model))
        with torch.inference_mode():
            outputs = network.eval()(*map(torch.from_numpy, given.values()))
        for actual, expected in zip(session(model).run(None, given), outputs, strict=True):
            close(actual, expected.numpy())


@pytest.mark.parametrize("end", [0, 1])
def test_decode_with_a_cache_equals_prefill(end: int) -> None:
    """Token by token, with the same weights."""
    prefill, decode = small("lm-prefill"), small("lm-decode")
    architecture = prefill.extremes()[end]
    same = decode.at(past=1).read(
        Architecture("lm-decode", architecture.units, None, architecture.choice)
    )
    at_once = session(prefill.build(architecture, draw_weights, free=True))
    by_one = session(decode.build(same, draw_weights, free=True))
    names = [each.name for each in by_one.get_outputs()]
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (1, 8))
    positions = np.arange(8)[None]

    def prompt(count: int) -> list[NDArray]:
        given = {"tokens": tokens[:, :count], "positions": positions[:, :count]}
        return at_once.run(None, given)

    results = dict(zip(names, prompt(1), strict=True))
    for step in range(1, 8):
        past = {f"past{n[7:]}": each for n, each in results.items() if n.startswith("present")}
        given = {
            name: whole[:, step : step + 1]
            for name, whole in (("tokens", tokens), ("positions", positions))
        }
        results = dict(zip(names, by_one.run(None, {**given, **past}), strict=True))
        expected = dict(zip(names, prompt(step + 1), strict=True))
        for name in names:
            close(results[name], expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_looked_up(name: str) -> None:
    space = small(name)
    table = part_table(space)
    table.rows(space.encode(some(space, 200)))
    assert table.rule is Rule.CHAIN
    table.complete()


def test_the_number_of_networks() -> None:
    blocks = sum((3 * 2 * 3) ** depth for depth in range(8, 17))
    for name in NAMES:
        assert load_space(name).count() == 3 * blocks == pytest.approx(3.86e20, rel=1e-2)


def test_the_cache_is_read_once_for_each_head_of_keys() -> None:
    """With the past grow reading and writing of the cache, and the arithmetic of attention."""
    space = load_space("lm-decode", width_mult=0.125, contexts={"past": 1000})
    size, heads, kv_heads = 8, 16, 4
    one, more = (space.at(past=past).read("d1024; 8*h16g4f1536") for past in (1000, 1010))
    encoder = CostEncoder(space)
    first, second = (
        dict(zip(encoder.columns, row, strict=True)) for row in encoder.encode([one, more])
    )
    grown = {name: second[name] - first[name] for name in first}
    numbers = 8 * 10 * kv_heads * size  # of keys, and as many of values
    assert grown["all.attention.mflops"] == pytest.approx(
        2 * 2 * 8 * 10 * heads * size / 1e6, rel=1e-3
    )
    assert grown["all.attention.mbytes"] == pytest.approx(4 * 2 * numbers / 1e6, rel=1e-3)
    assert grown["all.layout.mbytes"] == pytest.approx(4 * 2 * 2 * numbers / 1e6, rel=1e-3)
    assert grown["all.linear.mflops"] == 0


def test_attention_of_a_prompt_grows_with_its_square() -> None:
    space = load_space("lm-prefill", width_mult=0.125)
    counted = []
    for sequence in (50, 100, 200):
        parts = parts_of(space, space.at(sequence=sequence).read("d512; 8*h8g2f1536"))
        operators = [operator for part in parts for operator in part.operators]
        kinds = ("attention", "linear")
        counted.append([sum(o.flops for o in operators if o.kind == kind) for kind in kinds])
    attention, linear = zip(*counted, strict=True)
    assert attention[2] == 4 * attention[1] == 16 * attention[0]
    assert linear[2] - linear[1] == 2 * (linear[1] - linear[0])
