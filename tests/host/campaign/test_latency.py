"""A campaign's predictor as a function: for loops that ask often, and in other processes."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from esm_host import Run, Settings, load_run, profile, resume
from esm_host.campaign.latency import Latency
from esm_host.encoding.sources import SourceModels, SourcesEncoder
from esm_host.encoding.views import ViewsEncoder
from esm_host.errors import DatasetError
from esm_host.predictors import make_predictor
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.errors import InvalidArchitectureError
from esm_protos.messages import MeasureSpec
from tests.helpers import told_elsewhere
from tests.host.fake_campaign import SPACE, latency

OWN = f"{Path(__file__).parents[1] / 'own_spaces.py'}:Tiny"
SMALL = Settings(
    "any",
    space=OWN,
    resolution=32,
    initial=15,
    max_models=15,
    block_size=5,
    folds=2,
    spec=MeasureSpec(runs=5),
    verify=0,
    sampling="balanced",
)


@pytest.fixture(scope="module", params=["auto", "ridge"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a space of one's own; auto is kept as ONNX, ridge is fitted again."""
    run = tmp_path_factory.mktemp("campaign") / request.param
    profiler = FakeProfiler(latency, noise=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: profiler)
        profile(replace(SMALL, predictor=request.param), run)
    return run


@pytest.fixture
def run(finished: Path) -> Run:
    return load_run(finished)


def test_it_gives_what_predict_gives_one_at_a_time(run: Run) -> None:
    architectures = run.sample(8, "random")
    predict, expected = run.latency(), run.predict(architectures)
    for architecture, latency_ms in zip(architectures, expected, strict=True):
        for given in (architecture, architecture.to_json()):
            found = predict(given)
            assert type(found) is float
            assert found == pytest.approx(latency_ms, rel=1e-5)
    np.testing.assert_allclose(predict.many(architectures), expected, rtol=1e-5)
    assert predict.many([]).shape == (0,)
    with pytest.raises(InvalidArchitectureError, match="is of space 'resnet', not 'tiny'"):
        predict(SPACE.extremes()[0])


def test_the_model_is_loaded_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    loaded: list[bytes] = []
    real = onnxruntime.InferenceSession

    def load(model: bytes, *args: Any, **options: Any) -> Any:
        loaded.append(model)
        return real(model, *args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    (architecture,) = run.sample(1)
    for _ in range(3):
        run.latency()(architecture)
        run.predict([architecture])
    assert len(loaded) == (finished.name == "auto")


def test_another_process_predicts_the_same_without_the_folder(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    run = load_run(tmp_path / "run")
    architectures = run.sample(5, "random")
    pickled = pickle.dumps(run.latency())
    shutil.rmtree(tmp_path / "run")
    assert told_elsewhere(pickled, architectures) == [run.latency()(a) for a in architectures]


@pytest.fixture
def transferred(tmp_path: Path) -> Latency:
    """Of a campaign that learnt from other devices, whose encoding knows them."""
    rng = np.random.default_rng(0)
    settings = replace(SMALL, space="resnet", width_mult=0.25, warm_start="all")
    models = SourceModels(("a", "b"), rng.random(2), rng.random((len(ViewsEncoder(SPACE)), 2)))
    encoder = SourcesEncoder(SPACE, models)
    architectures = SPACE.decode(SPACE.showcase())
    predictor = make_predictor("auto", encoder, 0)
    predictor.fit(encoder.encode(architectures), 1 + rng.random(len(architectures)))
    return Latency(tmp_path, settings, encoder, predictor)


def test_sources_go_with_it(transferred: Latency) -> None:
    again = pickle.loads(pickle.dumps(transferred))
    for architecture in SPACE.extremes():
        assert again(architecture) == transferred(architecture)


def test_without_a_predictor_the_cure_is_named(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "result.json").unlink()
    with pytest.raises(DatasetError, match=r"has no predictor yet: esm_host\.resume\('.*'\)"):
        load_run(run).latency()
    shutil.copy(finished / "result.json", run)
    (run / "predictor.onnx").write_bytes(b"no model")
    with pytest.raises(DatasetError, match=r"is damaged .*esm_host\.resume"):
        load_run(run).latency()


def test_another_predictor_is_another_function(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = load_run(run)
    architecture = before.sample(1)[0]
    first = before.latency()(architecture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: FakeProfiler(latency, noise=0.01))
        after = resume(run, predictor="linear")
    assert after.latency()(architecture) != first
    assert before.latency()(architecture) == first, "a run never changes"
