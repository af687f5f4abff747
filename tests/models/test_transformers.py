"""Transformers with caches, several inputs and free dimensions, as users write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import esm_host
from esm_models.errors import InvalidSpaceError
from esm_models.graph import NEWEST_OPSET, OPSET, Axis, Network
from esm_models.space import Feature, SearchSpace
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights
from tests.host.exporting.test_export import imported
from tests.host.transformers import Decoder, ViT

OPSETS = pytest.mark.parametrize("opset", [OPSET, NEWEST_OPSET])
PATH = Path(__file__).parents[1] / "host" / "transformers.py"


def of_opset(cls: type[SearchSpace], opset: int, **settings: int) -> SearchSpace:
    return type("Space", (cls,), {"opset": opset})(**settings)


def session(model: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def decoded(space: SearchSpace, past: int, new: int, seed: int = 0) -> dict[str, NDArray]:
    """Inputs of a decoder after ``past`` tokens."""
    rng = np.random.default_rng(seed)
    graph = onnx.load_from_string(space.build(space.extremes()[1])).graph
    given = {
        "tokens": rng.integers(0, 50, (space.batch, new)),
        "positions": np.tile(past + np.arange(new), (space.batch, 1)),
    }
    for value in graph.input[2:]:
        shape = (space.batch, past, dims(value)[2])
        given[value.name] = rng.standard_normal(shape, dtype=np.float32)
    return given


@OPSETS
def test_graphs_to_measure_are_fixed_and_exported_ones_free(opset: int) -> None:
    space = of_opset(Decoder, opset)
    architecture = space.extremes()[0]
    fixed = onnx.load_from_string(space.build(architecture)).graph
    free = onnx.load_from_string(space.build(architecture, free=True)).graph
    assert [each.name for each in fixed.input] == [
        *("tokens", "positions", "past.1.key", "past.1.value")
    ]
    assert [each.name for each in fixed.output] == ["output", "present.1.key", "present.1.value"]
    assert [dims(each) for each in fixed.input] == [[1, 16], [1, 16], [1, 6, 8], [1, 6, 8]]
    assert [dims(each) for each in fixed.output] == [[1, 16, 50], [1, 22, 8], [1, 22, 8]]
    assert dims(free.input[0]) == [1, "sequence"]
    assert dims(free.input[2]) == [1, "past", 8]
    assert [dims(each) for each in free.output] == [
        [1, "sequence", 50],
        *[[1, "past + sequence", 8]] * 2,
    ]
    assert fixed.node == free.node


@OPSETS
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_free_graph_computes_in_steps_what_it_computes_at_once(opset: int, dtype: str) -> None:
    """A cache of keys and values, and positions, continue a sequence."""
    space = of_opset(Decoder, opset, dtype=dtype)
    if (opset, dtype) == (OPSET, "int8"):
        with pytest.raises(InvalidSpaceError, match=r"^dtype int8: operator Sqrt"):
            space.build(space.extremes()[0])
        return
    model = session(space.build(space.extremes()[1], draw_weights, free=True))
    names = [each.name for each in model.get_outputs()]
    whole = decoded(space, 3, 9)
    at_once = model.run(None, whole)[0]
    past = {name: value for name, value in whole.items() if name.startswith("past")}
    steps, begin = [], 0
    for end in (4, 5, 9):
        given = {name: whole[name][:, begin:end] for name in ("tokens", "positions")}
        results = dict(zip(names, model.run(None, {**given, **past}), strict=True))
        past = {name: results[f"present{name[4:]}"] for name in past}
        steps.append(results["output"])
        begin = end
    tolerance = 1e-4 if dtype == "float32" else 0.1
    difference = np.abs(np.concatenate(steps, axis=1) - at_once).max()
    assert difference < tolerance * np.abs(at_once).max()


def test_old_and_new_opsets_compute_the_same() -> None:
    for cls, settings in ((ViT, {"resolution": 32, "width_mult": 0.5}), (Decoder, {})):
        results = []
        for opset in (OPSET, 20, NEWEST_OPSET):
            space = of_opset(cls, opset, **settings)
            model = session(space.build(space.extremes()[1], draw_weights))
            if cls is Decoder:
                given = decoded(space, space.cached, 16)
            else:
                given = {"input": np.ones((1, 3, 32, 32), np.float32)}
            results.append(model.run(None, given)[0])
        for other in results[1:]:
            scale = np.abs(results[0]).max()
            np.testing.assert_allclose(other, results[0], atol=1e-4 * scale, rtol=0)


def test_exported_files_agree_for_other_lengths_too(tmp_path: Path) -> None:
    space = Decoder(batch=2)
    (each,) = esm_host.export(space, space.extremes()[1:], tmp_path / "out")
    module = imported(each.folder)
    model = session(str(each.folder / "model.onnx"))
    for past, new in ((6, 16), (0, 7), (11, 1), (2, 3)):
        given = decoded(space, past, new)
        with torch.no_grad():
            outputs = module.eval()(*map(torch.from_numpy, given.values()))
        for output, expected in zip(outputs, model.run(None, given), strict=True):
            assert output.shape == expected.shape
            scale = max(np.abs(expected).max(initial=0), 1)
            np.testing.assert_allclose(output.numpy(), expected, atol=1e-4 * scale, rtol=0)
    text = (each.folder / "model.py").read_text()
    assert "tokens (2 x 16 int64), positions (2 x 16 int64), past.1.key (2 x 6 x 32" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_vision_transformer_is_exported_for_any_batch(tmp_path: Path) -> None:
    space = ViT(resolution=32, batch=2)
    (each,) = esm_host.export(space, space.extremes()[:1], tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    (expected,) = session(str(each.folder / "model.onnx")).run(None, {"input": x})
    module = imported(each.folder).eval()
    with torch.no_grad():
        for n in (1, 2):
            output = module(torch.from_numpy(x[:n])).numpy()
            np.testing.assert_allclose(output, expected[:n], atol=1e-4 * np.abs(expected).max())
    text = (each.folder / "model.py").read_text()
    assert "nn.LayerNorm(96, eps=1e-05)" in text
    assert "nn.Linear(96, 288)" in text


def test_an_opset_is_declared_only_where_an_operator_needs_it() -> None:
    def declared(net: Network, output: str) -> int:
        (opset,) = onnx.load_from_string(net.serialize("graph", output)).opset_import
        return opset.version

    net = Network((1, 3, 8, 8))
    assert declared(net, net.reduce_mean(net.relu(net.input), [2, 3])) == OPSET
    net = Network((1, 3, 8, 8))
    assert declared(net, net.gelu(net.input)) == 20
    net = Network((1, 3, 8, 8), opset=19)
    assert declared(net, net.gelu(net.input)) == OPSET


def test_a_space_loads_from_its_file() -> None:
    for name in ("ViT", "WidthPerBlock", "Decoder"):
        assert load_space(f"{PATH}:{name}").count() > 10


@pytest.mark.parametrize("opset", [16, 24, "17"])
def test_other_opsets_are_refused(opset: object) -> None:
    with pytest.raises(InvalidSpaceError, match=rf"has opset={opset!r}: give 17 to 23"):
        type("Own", (ViT,), {"opset": opset})()


# Mistakes

MISTAKES = {
    "net.attention(x, x, x, heads=3)": "attention of 16 features in 3 heads, and keys of 16 in 3",
    "net.attention(x, x, x, heads=4, kv_heads=2)": "give both the same size of a head",
    "net.matmul(x, x)": "matmul of 1x4x16 by 1x4x16: 16 is not 4",
    "net.reshape(x, (3, 7))": "reshape of 1x4x16 to 3x7: the numbers of elements differ",
    "net.transpose(x, (0, 1))": "transpose of 1x4x16 by (0, 1): give each dimension once",
    "net.split(x, 3)": "split of 16 into 5x5x5: the sum is 15",
    "net.slice(x, 8, 4)": "slice 8 to 4 of 16 elements is empty",
    "net.gather(x, x)": "gather with the indices 'x' of float32: give int64",
    "net.add(x, net.parameter(15))": "1x4x16 and 15 do not fit: sizes must be equal or 1",
    "net.expand(x, (1, 4, 32))": "1x4x16 and 1x4x32 do not fit",
    "net.add_input('x', (1,))": "input 'x' exists: give another name",
    "net.add_input('y', (1,), 'int8')": "dtype 'int8' of input 'y': choose float32, int64, bool",
    "net.add_output('output', x)": "output 'output' exists: give another name",
    "net.slice(s, 1, axis=1)": "slice 1 to None of a named dimension has no fixed size",
    "net.expand(net.parameter(1, 1, 16), net.shape(s))": "a named dimension is free",
    "net.conv(net.input, 8, groups=2)": "conv of 3 to 8 channels in 2 groups: give a divisor",
    "net.conv(net.input, 8, kernel=40, padding=0)": "conv of kernel 40 on 32x32: give a larger",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_names_the_shapes_and_the_line(line: str) -> None:
    class Own(SearchSpace):
        name = "own"
        depths = ((1,),)
        features = (Feature("kernel", "k", (1,)),)

        def network(self, net: Network, units: object) -> str:
            x = net.add_input("x", (1, 4, 16))
            s = net.add_input("s", (1, Axis("sequence", 4), 16))
            result: str = eval(line, {"net": net, "x": x, "s": s})
            return result

    space = Own(resolution=32)
    with pytest.raises((InvalidSpaceError, ValueError)) as caught:
        space.build(space.extremes()[0])
    assert MISTAKES[line] in str(caught.value)
