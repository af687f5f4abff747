"""Classes of users that fail: one line with the file and the line, and no traceback."""

import re
from pathlib import Path

import numpy as np
import pytest
import typer

import esm_host
from esm_agent.errors import ProviderMissingError
from esm_agent.measure.sources import VisitMetrics, load_sources
from esm_agent.measure.worker import UnusableOptionError
from esm_agent.providers import make_provider
from esm_agent.serving.server import AgentServer
from esm_host.cli.errors import one_line_errors
from esm_host.encoding import make_encoder
from esm_host.errors import EsmError, UsageError
from esm_host.plugins import plugin_class, read_module
from esm_host.predictors import encoding_for, make_predictor, predictor_class
from esm_host.sampling import make_sampler
from esm_host.search import methods as search_methods
from esm_host.search.costs import NetworkCost
from esm_host.search.objectives import parse_objective, read_measure
from esm_host.search.problem import Objective, Problem
from esm_host.transfer import make_method
from esm_host.transfer.source import Source
from esm_models.errors import ModelsError
from esm_models.spaces import load_space
from esm_protos.metrics import Metric
from esm_protos.plugins import PluginError
from tests.helpers import depth_bins
from tests.host.fake_campaign import SPACE

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
    sampler = make_sampler(f"{file}:Own", space, depth_bins(space, 2))
    with pytest.raises(EsmError, match=r"has no attribute 'foo' \(line 9 of"):
        sampler.sample(3, np.random.default_rng(0))


def test_what_is_told_is_checked() -> None:
    space = load_space("resnet", resolution=32)
    loop = esm_host.Loop(space, esm_host.SamplingSettings(initial=10, max_models=10, bins=2))
    asked = loop.ask()
    words = ["x"] * len(asked)
    with pytest.raises(UsageError, match="latency_ms"):
        loop.tell(asked, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="latency_ms"):
        loop.tell(asked, words)  # type: ignore[arg-type]


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
        ('(Metric("trimmed_mean_ms", "", ""),)', "trimmed_mean_ms is taken"),
        ('(Metric("peak_rss_bytes", "", ""),)', "peak_rss_bytes is taken"),
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
    with pytest.raises(UnusableOptionError, match=f"^the provider npu failed: {file}:Own: {said}"):
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


# Values that a class returns

ENCODER = """
from esm_host.encoding.base import Encoder, Layout


class Own(Encoder):
    name = "own"

    def _columns(self):
        {columns}

    def _encode(self, codes, resolution):
        {encoded}
"""


@pytest.mark.parametrize(
    ("columns", "encoded", "said"),
    [
        ("return ['a', 'a']", "pass", "Own names the column 'a' twice: give each a name of"),
        ("yield 'a'; yield 'a'", "pass", "Own names the column 'a' twice"),
        ("return ['a']", "return codes[:, 0, :2]", r"as an array \(2, 2\), but names 1 columns"),
        ("return ['a']", "return codes[:1, 0, :1]", r"as an array \(1, 1\), but names 1 columns"),
        ("return ['a']", "return codes[:, 0, :1] * float('nan')", "column 'a' that are not finite"),
        ("return ['a']", "return codes.foo", r"Own: AttributeError: .*'foo' \(line 12 of"),
        ("yield codes", "pass", r"NameError: .*'codes' is not defined \(line 9 of"),
    ],
)
def test_an_encoding(columns: str, encoded: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(ENCODER.format(columns=columns, encoded=encoded))
    with pytest.raises(EsmError, match=said) as caught:
        make_encoder(f"{file}:Own", SPACE)
    assert f"{file}:Own" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_properties_of_an_encoding_fail_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    own = ENCODER.format(columns="return ['a']", encoded="return codes[:, 0, :1]")
    hook = "\n    @{}\n    def {}(self, *_):\n        return 1 / 0\n"
    file.write_text(own + hook.format("property", "layout"))
    with pytest.raises(EsmError, match=r"own.py:Own: ZeroDivisionError: .* \(line 16 of"):
        make_predictor("ridge", make_encoder(f"{file}:Own", SPACE))
    predictor = PREDICTOR.format(fit=1, predict=2).replace('"fcc"', f'"{file}:Own"')
    predictor = predictor.replace("class Own", "class Second")
    file.write_text(own + hook.format("classmethod", "suits") + predictor)
    with pytest.raises(EsmError, match=r"own.py:Own: ZeroDivisionError: .* \(line 16 of"):
        encoding_for(f"{file}:Second", SPACE)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("(x[:, 0], x[:1, 0])", r"_predict_with_std returned the shape \(1,\) for 4 encodings"),
        ("(x[:, 0] * float('inf'), x[:, 0])", "_predict_with_std returned values that are not"),
        ("x[:, 0]", "ValueError: too many values"),
    ],
)
def test_deviations_of_a_predictor(returned: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    own = PREDICTOR.format(fit="pass", predict="return encodings[:, 0]")
    more = f"    def _predict_with_std(self, x):\n        return {returned}\n"
    file.write_text(f"{own}\n    knows_std = True\n\n{more}")
    x = np.ones((4, 2), np.float32)
    predictor = predictor_class(f"{file}:Own")().fit(x, np.ones(4))
    with pytest.raises(EsmError, match=f"own.py:Own: .*{said}"):
        predictor.predict(x, return_std=True)


@pytest.mark.parametrize("factor", [0, -1])
def test_latencies_that_are_not_positive(factor: int, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(PREDICTOR.format(fit="pass", predict=f"return encodings[:, 0] * {factor}"))
    x = np.ones((4, 2), np.float32)
    predictor = predictor_class(f"{file}:Own")().fit(x, np.ones(4))
    with pytest.raises(
        EsmError, match=r"own.py:Own: _predict returned a latency of -?[01] ms: ret"
    ):
        predictor.predict(x)


CODES = """
import numpy as np

from esm_host.sampling.balanced import BalancedSampler


class Own(BalancedSampler):
    def _codes(self, n, bin_index, rng):
        {before}
        codes = super()._codes(n, bin_index, rng)
        {after}
        return codes
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("n += 1", "", r"returned an array \(17, 4, 7\) of int16: return at most 16"),
        ("", "codes = codes * 1.0", "of float64: return at most 16 architectures as integers"),
        ("", "codes = codes[:, 0]", r"returned an array \(16, 7\) of int16"),
        (
            "",
            "codes[3, 0, 0] = 99",
            r"returned \[\[99, .*outside of resnet: give options from 0 to 8",
        ),
        ("", "codes[3, 0, 0] = -2", r"returned \[\[-2, .*outside of resnet"),
        ("", "codes[3, 0] = -1", r"returned \[\[-1, .*outside of resnet"),
        ("bin_index = 1 - bin_index", "", "blocks for the bin of 4-16: keep to the bin"),
        ("", "yield", "returned an array"),
    ],
)
def test_what_a_sampler_draws(before: str, after: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(CODES.format(before=before, after=after))
    sampler = make_sampler(f"{file}:Own", SPACE, depth_bins(SPACE, 2))
    with pytest.raises(EsmError, match=f"own.py:Own: _codes .*{said}"):
        sampler.sample(3, np.random.default_rng(0), 0)


def test_repeated_codes_of_a_sampler_are_drawn_once(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(CODES.format(before="", after="codes[1:] = codes[:1]"))
    sampler = make_sampler(f"{file}:Own", SPACE, depth_bins(SPACE, 2))
    drawn = sampler.sample(3, np.random.default_rng(0))
    assert len(drawn) == len(set(drawn)) == 3


# Where a class fails

FAMILIES = """
from esm_host.sampling.random import RandomSampler
from esm_host.search.method import SearchMethod
from esm_host.transfer.base import FewShotPredictor
from esm_models.space import Feature, SearchSpace, Unit


class Sampler(RandomSampler):
    def __init__(self, space, bins):
        1 / 0


class Search(SearchMethod):
    def __init__(self, seed=0, how=""):
        self.seed, self.how = seed, how

    def _run(self, problem, evaluate, start):
        if self.how == "outside":
            evaluate(problem.space.showcase()[:1] + 99)
        elif self.how:
            1 / 0


class Yielding(Search):
    def _run(self, problem, evaluate, start):
        yield evaluate(start)


class Few(FewShotPredictor):
    absolute = True

    def __init__(self, how=""):
        self.how = how

    def _learn(self, sources):
        self.how == "learn" and 1 / 0

    def _adapt(self, codes, latency_ms):
        self.how == "adapt" and 1 / 0

    def _predict(self, codes):
        returned = {{"predict": 0, "shape": codes[:1, 0, 0], "nan": codes[:, 0, 0] * float("nan")}}
        self.how == "predict" and 1 / 0
        return returned.get(self.how, codes[:, 0, 0] * 0)


class Space(SearchSpace):
    name = "own"
    depths = {depths}
    features = {features}

    def network(self, net, units):
        if len(units[0]) == 2:
            1 / 0
        return net.relu(net.input)
"""
DIVIDED = r"ZeroDivisionError: .* \(line \d+ of .*own.py\)"


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.py"
    file.write_text(
        FAMILIES.format(depths="((1, 2, 3),)", features='(Feature("kernel", "k", (1, 3)),)')
    )
    return f"{file}:"


def test_the_constructor_of_a_sampler(own: str) -> None:
    with pytest.raises(EsmError, match=f"own.py:Sampler cannot be built: {DIVIDED}"):
        make_sampler(f"{own}Sampler", SPACE, depth_bins(SPACE, 2))


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("Search", "fail", f"own.py:Search: {DIVIDED}"),
        ("Search", "outside", "own.py:Search evaluates .*, which is outside of resnet"),
        ("Search", "", "own.py:Search evaluates no architecture: call evaluate in _run"),
        ("Yielding", "", "own.py:Yielding evaluates no architecture: .* generator"),
    ],
)
def test_a_search_method(name: str, how: str, said: str, own: str) -> None:
    cls = plugin_class(search_methods.FAMILY, f"{own}{name}")
    problem = Problem(SPACE, [NetworkCost(SPACE)], [Objective("flops")], [])
    with pytest.raises(EsmError, match=said):
        cls(how=how).search(problem)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("learn", DIVIDED),
        ("adapt", DIVIDED),
        ("predict", DIVIDED),
        ("shape", r"_predict returned an array \(1,\) of int16 for 9 architectures: return one"),
        ("nan", "_predict returned nan: return finite numbers"),
        ("", "_predict returned a latency of 0 ms: return more than 0, or set absolute = False"),
    ],
)
def test_a_transfer_method(how: str, said: str, own: str) -> None:
    codes = SPACE.showcase()
    source = Source("known", SPACE, codes, np.ones(len(codes)))
    method = make_method(f"{own}Few", how=how)
    with pytest.raises(EsmError, match=f"own.py:Few: {said}"):
        method.learn([source]).adapt(codes, np.ones(len(codes))).predict(codes)


def test_a_space_that_fails_for_some_architectures(own: str) -> None:
    space = load_space(f"{own}Space", resolution=32)
    with pytest.raises(ModelsError, match=rf"own.py:Space cannot be built: {DIVIDED}, with 2\*k1"):
        space.build(space.read("2*k1"))


@pytest.mark.parametrize(
    ("depths", "features", "said"),
    [
        (
            "((1,),)",
            '(Feature("kernel", "k", ()),)',
            r"Feature 'kernel' has values=\(\): give a tup",
        ),
        ("((1,),)", '(Feature("kernel", "k", "13"),)', "Feature 'kernel' has values='13': give a"),
        ("((1,),)", '(Feature("kernel", "k", (1, 1)),)', "give each value once"),
        ("((1,),)", "()", "own.py:Space has features of the names none: give one feature or more"),
        ("((1,),)", '(Feature("a", "k", (1,)),) * 2', "has features of the names a, a: give one"),
        ("((1,),)", '("kernel",)', r"own.py:Space has features=\('kernel',\): give a tuple of"),
        (
            "((1,),)",
            '(Feature("a", "", (1, 11)), Feature("b", "", (1, 11)))',
            "own.py:Space has the options 11, 111, 111, 1111: .* symbols of features set them",
        ),
        (
            "()",
            '(Feature("kernel", "k", (1,)),)',
            r"own.py:Space has depths=\(\): give each unit a",
        ),
        ("((),)", '(Feature("kernel", "k", (1,)),)', r"own.py:Space has depths=\(\(\),\)"),
        ("(3,)", '(Feature("kernel", "k", (1,)),)', r"own.py:Space has depths=\(3,\)"),
        ("(3,)", '(Feature("kernel", "k", (1,)),)', r"\(1, 2\)\) \(line 49 of \S+own.py\)$"),
        ("((1,),)", '(Feature("kernel", "k", (1,)))', r"has features=Feature\(.*: give a tuple of"),
        ("((1,),)", '(Feature("kernel", "k", (1,)))', r",\) \(line 50 of \S+own.py\)$"),
        ("((1,),)", "3", r"own.py:Space has features=3: give a tuple of Feature"),
        ("((1,),)", '(Feature("a", "k", (1,)),)\n    choices = 3', r"choices=3: .*line 51 of"),
        (
            "((1,),)",
            '(Feature("a", "k", (1,)),)\n    units: tuple = Unit((1,), features)',
            r"units=Unit\(.*: give a tuple of Unit, .*line 51 of",
        ),
        ("((1,),)", '(Feature("a", "k", (1,)),)\n    units = [3]', r"units=\[3\]: .*line 51 of"),
        (
            "((1,),)",
            '(Feature("a", "k", (1,)),)\n    units = (Unit((1,), features[0]),)',
            r"Unit has features=Feature\(.*: give a tuple of Feature, .*line 51 of",
        ),
        ("((1,),)", '(Feature("a", "k", (1,)),)\n    contexts = 3', r"contexts=3: .*line 51 of"),
    ],
)
def test_a_space_of_impossible_attributes(
    depths: str, features: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(FAMILIES.format(depths=depths, features=features))
    with pytest.raises(ModelsError, match=said) as caught:
        load_space(f"{file}:Space", resolution=32)
    assert "own.py" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "x = net.relu(net.input)",
            r"returns None: return the name of .* \(line 52 of \S+own.py\)$",
        ),
        ("return net.input, 1", r"returns \('input', 1\): return .* \(line 52 of \S+own.py\)$"),
        ("return 'x'", r"returns 'x': return the name of its result, such as net.relu\(x\) \(line"),
        (
            "return net.relu(None)",
            r"ValueError: None is not a tensor of .* \(line 53 of \S+own.py\)",
        ),
        (
            "return units[0][0]['kernle']",
            r"unknown feature 'kernle': did you mean 'kernel'\? choose kernel, width \(line 53 of",
        ),
        ("return units[0]['width']", r"unknown feature 'width': there is none \(line 53 of"),
    ],
)
def test_a_space_whose_network_is_wrong(body: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    features = '(Feature("kernel", "k", (1,)), Feature("width", "w", (8,)))'
    text = FAMILIES.format(depths="((1,),)", features=features)
    file.write_text(text[: text.index("        if len(units[0])")] + f"        {body}\n")
    with pytest.raises(ModelsError, match=rf"^{file}:Space .*{said}") as caught:
        load_space(f"{file}:Space", resolution=32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["return 1 / 0", "yield 1 / 0"])
def test_an_objective(body: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"def score(architectures):\n    {body}\n")
    measure = read_measure(parse_objective(f"accuracy={file}:score"), SPACE)
    with pytest.raises(
        EsmError, match=r"accuracy failed: ZeroDivisionError.* \(line 2 of .*own.py"
    ):
        measure(SPACE.showcase())


def test_a_command_names_the_line_wherever_a_users_class_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text("def lazily():\n    yield 1 / 0\n")

    @one_line_errors
    def command(path: Path) -> None:
        list(read_module(path, "function").lazily())

    with pytest.raises(typer.Exit):
        command(file)
    said = f"error: {file}: ZeroDivisionError: division by zero (line 2 of {file})\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ZeroDivisionError):
        one_line_errors(lambda: 1 / 0)()
