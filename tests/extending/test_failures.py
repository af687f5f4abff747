"""Classes of users that fail: one line with the file and the line, and no traceback."""

import re
from pathlib import Path

import numpy as np
import pytest

import esm_host
from esm_agent.errors import ProviderMissingError
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.sources import VisitMetrics, load_sources
from esm_agent.measure.worker import WorkerUnavailableError
from esm_agent.providers import base as agent_base
from esm_agent.providers import make_provider
from esm_agent.serving.server import AgentServer
from esm_host.errors import EsmError, UsageError
from esm_host.predictors import predictor_class
from esm_host.sampling import make_sampler
from esm_host.sampling.bins import DepthBins
from esm_models.spaces import load_space
from esm_protos.messages import FailureKind, MeasureSpec
from esm_protos.metrics import Metric
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

PROVIDER = """
from esm_agent.providers.cpu import CpuProvider
from esm_protos.providers import ProviderOption


class Own(CpuProvider):
    name = {name}
    options = ({options})

    def runtime_options(self, options, use):
        return {returned}
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


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("aggregate", "median", "aggregate='median': give 'trimmed_mean' or 'mean' or"),
        ("kind", "bool", "kind='bool': give 'float' or 'int'"),
        ("format", "%", "format='%': give 'number' or"),
        ("better", "smaller", "better='smaller': give 'lower' or 'higher' or ''"),
        ("shown", "always", "shown='always': give 'table'"),
        ("unit", 5, "unit=5: give text"),
        ("about", None, "about=None: give text"),
        ("heading", 1, "heading=1: give text"),
        ("title", b"t", "title=b't': give text"),
        ("default", "0", "default='0': give a number or None"),
        ("since", "2", "since='2': give a whole number"),
    ],
)
def test_a_metric_of_impossible_fields(field: str, value: object, said: str) -> None:
    given = {"key": "energy_mj", "unit": "mJ", "about": "", field: value}
    with pytest.raises(ValueError, match="^" + re.escape(f"Metric 'energy_mj' has {said}")):
        Metric(**given)


def test_a_metric_takes_the_words_of_its_choices() -> None:
    metric = Metric("pages", "", "", kind="int", format="bytes")  # type: ignore[arg-type]
    assert metric.one([1.0, 2.0]) == 2
    assert metric.text(2e6) == "2 MB"
    with pytest.raises(ValueError, match="'a b' is not a metric's key"):
        Metric("pages", "", "", field="a b")


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ('(Metric("a", "", "", field="latency_ms"),)', "latency_ms is taken"),
        ('(Metric("a", "", ""), Metric("a", "", ""))', "a is taken"),
        ('Metric("a", "", "")', r"metrics is Metric\(key='a'.*: give a tuple of Metric"),
        ('("energy",)', r"metrics is \('energy',\): give a tuple of Metric"),
    ],
)
def test_metrics_that_are_taken_or_none(metrics: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    own = METRIC.format(key="x").splitlines()
    file.write_text("\n".join(f"    metrics = {metrics}" if "= (" in x else x for x in own))
    with pytest.raises(PluginError, match=said):
        load_sources([f"{file}:Own"])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("'my npu'", "", r"the name 'my npu' is not a name: give up to 64 letters"),
        ("'npu,cpu'", "", r"the name 'npu,cpu' is not a name"),
        ("5", "", r"the name 5 is not a name"),
        (
            "'npu'",
            "ProviderOption('size', 'int', 'large'),",
            r"the option 'size' has the default 'large': give a whole number, as text",
        ),
        ("'npu'", "ProviderOption('size', 'int', 4),", r"has the default 4: give a whole number"),
        ("'npu'", "ProviderOption('fast', 'bool', 'yes'),", r"the default 'yes': give 0 or 1"),
        (
            "'npu'",
            "ProviderOption('precision', 'text', 'fp8', choices=('fp16', 'fp32')),",
            r"the option 'precision' has the default 'fp8': give fp16 or fp32",
        ),
        (
            "'npu'",
            "ProviderOption('size', 'int', '4', choices=('4', 'all')),",
            r"the option 'size' has the choice 'all': give a whole number",
        ),
        ("'npu'", "ProviderOption('size', 'enum', '4'),", r"the type 'enum': give bool or int or"),
        ("'npu'", "ProviderOption('a', 'text', 'x', choices='xy'),", r"the choices 'xy': give a t"),
        ("'npu'", "ProviderOption('my size', 'int', '4'),", r"the option 'my size' is not a name"),
        (
            "'npu'",
            "ProviderOption('size', 'int', '4'), ProviderOption('size', 'bool', '0')",
            r"two options are named 'size': rename one of them",
        ),
        ("'npu'", "'size',", r"options has 'size': give a tuple of ProviderOption"),
    ],
)
def test_a_provider_of_impossible_names_and_options(
    name: str, options: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(PROVIDER.format(name=name, options=options, returned="dict(options)"))
    with pytest.raises(ProviderMissingError, match=f"^{file}:Own: .*{said}") as caught:
        make_provider(f"{file}:Own")
    assert "\n" not in str(caught.value)


def test_a_hook_of_a_provider_that_fails_is_no_fault_of_the_model(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    returned = "dict(options) if options['size'] == '4' else options['none']"
    option = "ProviderOption('size', 'int', '4'),"
    file.write_text(PROVIDER.format(name="'npu'", options=option, returned=returned))
    provider = make_provider(f"{file}:Own")
    path = Path(agent_base.__file__).parents[1] / "reference_models" / "arithmetic.onnx"
    spec = MeasureSpec(provider="npu", provider_options={"size": "5"})
    with pytest.raises(ModelError, match=r"own.py:Own: KeyError: 'none' \(line 11 of") as caught:
        provider.load(UploadedModel("m", path), spec)
    assert caught.value.failure.kind is FailureKind.CRASH


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ("{'memory': 8}", "DeclarationError: identity is {'memory': 8}: give a dict of texts"),
        ("{}['board']", r"KeyError: 'board' \(line 14 of"),
    ],
)
def test_a_provider_that_cannot_be_described_stops_the_start(
    identity: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    text = PROVIDER.format(name="'npu'", options="", returned="dict(options)")
    file.write_text(f"{text}\n    def identity(self, device):\n        return {identity}\n")
    with pytest.raises(WorkerUnavailableError, match=said):
        AgentServer("127.0.0.1", 0, providers=[f"{file}:Own"])


def test_a_metric_source_that_returns_no_numbers(tmp_path: Path, caplog: object) -> None:
    file = tmp_path / "own.py"
    own = METRIC.format(key="energy").replace("self):\n        return {}", "self, n): ...")
    file.write_text(own)
    visits = VisitMetrics(load_sources([f"{file}:Own"]), lambda: None)
    visits.begin(0)
    visits.tick()
    visits.end()
    assert "stop returned None: return a dict of energy" in caplog.text  # type: ignore[attr-defined]
