"""The published-style models are complete, valid, and run alike on both sides of a comparison."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.direct_timing import open_session, random_inputs
from benchmarks.public_models import KINDS, OPSET, build, write_models
from esm_agent.measure import feeds
from esm_agent.measure.block import UploadedModel
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import MeasureSpec


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def test_there_are_ten() -> None:
    assert len(KINDS) == 10


@pytest.mark.parametrize("name", KINDS)
def test_a_model_is_complete_and_its_output_in_range(name: str, paths: dict[str, Path]) -> None:
    model = onnx.load(paths[name])
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == OPSET
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    session = open_session(str(paths[name]))
    (output,) = session.run(None, random_inputs(session))
    assert np.isfinite(output).all()
    assert 1e-4 < np.abs(output).max() < 1e4


@pytest.mark.parametrize("name", KINDS)
def test_both_sides_feed_the_same_kinds_of_input(name: str, paths: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(paths[name], providers=["CPUExecutionProvider"])
    ours, direct = feeds.draw(session, seed=0).arrays, random_inputs(session)
    assert {n: (a.dtype, a.shape) for n, a in ours.items()} == {
        n: (a.dtype, a.shape) for n, a in direct.items()
    }


def test_both_sides_open_sessions_alike(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all that bears on speed."""
    seen = []
    real = onnxruntime.InferenceSession

    def spy(model, options, providers):
        seen.append((options, providers))
        return real(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    CpuProvider().load(UploadedModel("audio", paths["audio"]), MeasureSpec())
    open_session(str(paths["audio"]))
    (ours, our_providers), (direct, their_providers) = seen
    assert our_providers == their_providers
    for option in (
        "graph_optimization_level",
        "execution_mode",
        "intra_op_num_threads",
        "enable_cpu_mem_arena",
        "enable_mem_pattern",
        "enable_mem_reuse",
        "enable_profiling",
    ):
        assert getattr(ours, option) == getattr(direct, option), option


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert build("lstm") == build("lstm")
    assert build("lstm") != build("lstm", seed=1)
