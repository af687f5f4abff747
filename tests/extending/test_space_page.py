"""Spaces of the page on search spaces: measured, encoded and exported."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import esm_host
from esm_host.encoding.cost import CostEncoder, PartsEncoder
from esm_host.sampling import make_sampler
from esm_models.graph import Network
from esm_models.part_table import Rule, part_table
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights
from tests.extending.page import PAGES, code_of
from tests.helpers import depth_bins

PAGE = (PAGES / "space.md").read_text()
FILES = {"tiny_vit.py": "TinyViT", "tiny_decoder.py": "TinyDecoder", "staged_net.py": "StagedNet"}
MOST_LINES = 50
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@pytest.fixture(params=FILES)
def plugin(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (code,) = (
        block for block in code_of(PAGE, "python") if block.startswith(f"# {request.param}\n")
    )
    assert len(code.splitlines()) < MOST_LINES
    path = tmp_path / request.param
    path.write_text(code)
    return f"{path}:{FILES[request.param]}"


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_graphs_run(plugin: str, dtype: str) -> None:
    space = load_space(plugin, resolution=32, dtype=dtype)
    for architecture in space.extremes():
        model = space.build(architecture, draw_weights)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        given = {x.name: np.ones(x.shape, TYPES[x.type]) for x in session.get_inputs()}
        assert all(np.isfinite(output).all() for output in session.run(None, given))


def test_encodings_look_their_parts_up(plugin: str) -> None:
    space = load_space(plugin, resolution=32)
    sampler = make_sampler("balanced", space, depth_bins(space, 3))
    codes = space.encode(sampler.sample(300, np.random.default_rng(0)))
    encoder = CostEncoder(space)
    counted = encoder.encode(space.decode(codes))
    if space.units:
        assert part_table(space).rule is Rule.CHAIN
        return
    assert part_table(space).rule is Rule.PLACE
    assert any(".attention.mflops" in name for name in encoder.columns)
    assert (counted[:, encoder.columns.index("all.attention.operators")] >= 2).all()
    assert len(PartsEncoder(space).parts) <= (2 * 9 + 2) * space.context_count


def test_exported_modules_agree(plugin: str, tmp_path: Path) -> None:
    space = load_space(plugin, resolution=32)
    for each in esm_host.export(space, space.extremes(), tmp_path / "out"):
        module = esm_host.torch_module(space, each.architecture, seed=0)
        session = onnxruntime.InferenceSession(each.folder / "model.onnx")
        sizes = {"sequence": 5, "past": 3}
        given = {}
        for x in session.get_inputs():
            shape = [sizes.get(size, size) for size in x.shape]
            given[x.name] = np.ones(shape, TYPES[x.type])
        with torch.no_grad():
            outputs = module.eval()(*map(torch.from_numpy, given.values()))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output, expected in zip(outputs, session.run(None, given), strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(output.numpy(), expected, atol=1e-4 * scale, rtol=0)


def test_the_page_names_every_operator() -> None:
    public = {name for name in vars(Network) if not name.startswith("_")}
    table = PAGE.partition("## Operators")[2].partition("## A transformer")[0]
    named = {name for cell in re.findall(r"`(\w+)[`(]", table) for name in [cell]}
    others = {"nodes", "initializers", "folded", "serialize", "inputs", "outputs", "type"}
    assert public - others - {"scope", "add_input", "add_output", "shape"} <= named
