"""Classes of users that fail: one line with the file and the line, and no traceback."""

from pathlib import Path

import numpy as np
import pytest

import esm_host
from esm_agent.measure.sources import load_sources
from esm_host.errors import EsmError, UsageError
from esm_host.predictors import predictor_class
from esm_host.sampling import make_sampler
from esm_host.sampling.bins import DepthBins
from esm_models.spaces import load_space
from esm_protos.plugins import PluginError

PREDICTOR = """
from esm_host.predictors.base import Predictor


class Own(Predictor):
    '''A predictor that fails.'''

    encoding = "fcc"

    def _fit(self, encodings, latency_ms, sample_weight):
        {fit}

    def _predict(self, encodings):
        {predict}
"""
SAMPLER = """
from esm_host.sampling.base import Sampler


class Own(Sampler):
    '''A sampler that fails.'''

    def _codes(self, n, bin_index, rng):
        return rng.foo()
"""
METRIC = """
from esm_agent.measure.sources import MetricSource
from esm_protos.metrics import Metric


class Own(MetricSource):
    metrics = (Metric("{key}", "", "a key of the program's own"),)

    def start(self):
        pass

    def stop(self):
        return {{}}
"""


@pytest.mark.parametrize(
    ("fit", "predict", "said"),
    [
        ("encodings @ 'x'", "return encodings[:, 0]", "line 11 of"),
        ("pass", "return encodings[:1, 0]", "_predict returned the shape (1,) for 4 encodings"),
        ("pass", "return encodings[:, 0] * float('nan')", "not finite numbers"),
        ("pass", "pass", "_predict returned the shape ()"),
    ],
)
def test_a_predictor(fit: str, predict: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(PREDICTOR.format(fit=fit, predict=predict))
    predictor = predictor_class(f"{file}:Own")()
    x = np.ones((4, 2), np.float32)
    with pytest.raises(EsmError) as caught:
        predictor.fit(x, np.ones(4)).predict(x)
    message = str(caught.value)
    assert f"{file}:Own" in message
    assert said in message
    assert "\n" not in message


def test_a_sampler(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(SAMPLER)
    space = load_space("resnet", resolution=32)
    sampler = make_sampler(f"{file}:Own", space, DepthBins(space.min_depth, space.max_depth, 2))
    with pytest.raises(EsmError, match=r"has no attribute 'foo' \(line 9 of"):
        sampler.sample(3, np.random.default_rng(0))


@pytest.mark.parametrize("key", ["trimmed_mean_ms", "latency_ms", "peak_rss_bytes"])
def test_a_metric_takes_no_key_of_the_program(key: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(METRIC.format(key=key))
    with pytest.raises(PluginError, match=f"{key} is taken"):
        load_sources([f"{file}:Own"])


def test_what_is_told_is_checked() -> None:
    space = load_space("resnet", resolution=32)
    loop = esm_host.Loop(space, esm_host.SamplingSettings(initial=10, max_models=10, bins=2))
    asked = loop.ask()
    words = ["x"] * len(asked)
    with pytest.raises(UsageError, match="latency_ms"):
        loop.tell(asked, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="latency_ms"):
        loop.tell(asked, words)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give a list"):
        loop.tell(asked[0], 1.0)
