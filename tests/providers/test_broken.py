"""Broken set-ups of execution providers: each has a typed outcome in one line, and none harms.

A row is one set-up. After it the same agent measures on the CPU. Run by ``make test-providers``.
"""

from __future__ import annotations

import ctypes.util
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import TensorProto, helper

from esm_agent.measure.sandbox import Confinement
from esm_agent.measure.worker import UnusableOptionError, Worker
from esm_agent.serving import server
from esm_agent.serving.server import AgentServer
from esm_protos.messages import FailureKind
from tests.providers import broken
from tests.providers.test_wheels import agent, esm_host, lines

pytestmark = pytest.mark.providers

SHARED = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_shared.so"
"""A library of the runtime that is no provider."""
_PATH = "def get_library_path(): return {path!r}\n"
_NAMES = "def get_ep_names(): return ['Acme']\n"


def package(path: object = "/no/such.so", names: str = _NAMES, before: str = "") -> str:
    return f"{before}\n{_PATH.format(path=path)}{names}"


def fails(action: str) -> str:
    """Code of a package that fails in a way of :func:`tests.providers.broken.act`."""
    return f"from tests.providers.broken import act\nact({action!r})\n"


def in_function(name: str, action: str) -> str:
    function = f"def {name}():\n    from tests.providers.broken import act\n    act({action!r})\n"
    return f"{package()}{function}"


STOPS = "it stops the measuring process"
TEXT = "a text is needed"
NO_NAMES = "it has none of get_ep_names, get_ep_name, EP_NAME"
PACKAGES = {
    "import-raises": (fails("raises"), "the accelerator is on fire"),
    "import-foreign": (fails("foreign"), "lost"),
    "import-exits": (fails("exits"), f"{STOPS} (exit code 7)"),
    "import-leaves": (fails("leaves"), f"{STOPS} (exit code 7)"),
    "import-segv": (fails("segv"), f"{STOPS} (killed by SIGSEGV)"),
    "import-kill": (fails("kill"), f"{STOPS} (killed by SIGKILL"),
    "import-abrt": (fails("abrt"), f"{STOPS} (killed by SIGABRT)"),
    "import-hangs": (fails("hangs"), f"{STOPS} (no answer for 3 s)"),
    "import-syntax": ("def get_library_path(:\n", "invalid syntax"),
    "import-lacks": ("import no_such_module_of_acme\n", "No module named 'no_such_module_of_acme'"),
    "path-raises": (in_function("get_library_path", "raises"), "the accelerator is on fire"),
    "path-exits": (in_function("get_library_path", "exits"), f"{STOPS} (exit code 7)"),
    "path-hangs": (in_function("get_library_path", "hangs"), f"{STOPS} (no answer for 3 s)"),
    "path-none": (package(None), f"its get_library_path gives None where {TEXT}"),
    "path-number": (package(7), f"its get_library_path gives … where {TEXT}"),
    "path-empty": (package(""), f"its get_library_path gives '' where {TEXT}"),
    "path-missing": ("", "it has none of get_library_path, library_path"),
    "path-no-file": (package("/no/such.so"), "/no/such.so: Failed to load library"),
    "path-folder": (package("/tmp"), "/tmp: Failed to load library"),
    "path-text": (package("{folder}/text.so"), "text.so"),
    "path-other-library": (package(ctypes.util.find_library("m") or "libm.so.6"), "libm.so"),
    "path-no-provider": (package(str(SHARED)), "Failed to get symbol CreateEpFactories"),
    "names-raises": (in_function("get_ep_names", "raises"), "the accelerator is on fire"),
    "names-none": (
        package(names="get_ep_names = None\n"),
        NO_NAMES,
    ),
    "names-empty-list": (
        package(names="get_ep_names = ()\n"),
        f"its get_ep_names gives () where {TEXT}",
    ),
    "names-empty": (package(names="EP_NAME = ''\n"), f"its EP_NAME gives '' where {TEXT}"),
    "names-number": (
        package(names="EP_NAME = [7]\n"),
        f"its EP_NAME gives […] where {TEXT}",
    ),
    "names-missing": (package(names=""), NO_NAMES),
}
"""Packages with their code, and what the agent says of them."""
FOUND = {
    "no-device": "registered, offers no device on this machine",
    "probe-raises": "the accelerator is on fire",
    "probe-foreign": "lost",
    "probe-exits": f"{STOPS} (exit code 7)",
    "probe-hangs": f"{STOPS} (no answer for 3 s)",
    "info-raises": "no identity (line ",
    "bad name": "the name 'bad name' is not a name",
    "bad-metadata": "/no/such.so: Failed to load library",
    "ü": "/no/such.so: Failed to load library",
}
"""Other providers that are found, and what the agent says of them."""
SAID = {name: words for name, (_, words) in PACKAGES.items()} | FOUND
MODELS = {
    ("compile", "raises"): ("invalid_model", "the accelerator is on fire"),
    ("compile", "foreign"): ("invalid_model", "KeyError: 'lost'"),
    ("compile", "hangs"): ("timeout", "loading took longer than 1 s"),
    ("compile", "exits"): ("crash", "exit code 7"),
    ("compile", "segv"): ("crash", "killed by SIGSEGV"),
    ("compile", "kill"): ("crash", "killed by SIGKILL"),
    ("compile", "abrt"): ("crash", "killed by SIGABRT"),
    ("compile", "eats"): ("out_of_memory", "does not fit into memory"),
    ("compile", "leaves"): ("crash", "exit code 7"),
    ("loaded", "not"): ("crash", "the Acme provider did not load"),
    ("claims", "none"): ("unsupported_op", "2 of 2 nodes did not run on Acme"),
    ("claims", "some"): ("unsupported_op", "1 of 2 nodes did not run on Acme: exp (Exp)"),
    ("first", "raises"): ("invalid_input", "the first run failed: the accelerator is on fire"),
    ("first", "foreign"): ("invalid_input", "KeyError: 'lost'"),
    ("first", "hangs"): ("timeout", "one inference took longer than 1 s"),
    ("first", "exits"): ("crash", "exit code 7"),
    ("first", "segv"): ("crash", "killed by SIGSEGV"),
    ("first", "kill"): ("crash", "killed by SIGKILL"),
    ("first", "abrt"): ("crash", "killed by SIGABRT"),
    ("first", "eats"): ("out_of_memory", "memory"),
    ("later", "raises"): ("invalid_model", "a later run failed: the accelerator is on fire"),
    ("later", "hangs"): ("timeout", "one inference took longer than 1 s"),
    ("later", "exits"): ("crash", "exit code 7"),
    ("later", "segv"): ("crash", "killed by SIGSEGV"),
    ("later", "kill"): ("crash", "killed by SIGKILL"),
    ("later", "abrt"): ("crash", "killed by SIGABRT"),
    ("later", "eats"): ("out_of_memory", "memory"),
}
"""Stages at which the provider fails on a model, and how; the kind of the failure and its text."""
OPTIONS = {
    "no-such": (("--ep", "no-such"), "unknown execution provider 'no-such'"),
    "cuda": (("--ep", "cuda"), "unknown execution provider 'cuda'"),
    "unknown-key": (("--ep-option", "x=1"), "unknown option 'x' of the provider cpu: it has none"),
    "no-value": (("--ep", "acme", "--ep-option", "x"), "--ep-option x: give KEY=VALUE"),
    "empty-value": (("--ep", "acme", "--ep-option", "x="), "--ep-option x="),
    "no-key": (("--ep", "acme", "--ep-option", "=1"), "--ep-option =1"),
    "twice": (("--ep", "acme", *("--ep-option", "x=1", "--ep-option", "x=2")), "--ep-option x=2"),
    "fallback": (("--allow-fallback",), "--allow-fallback has no effect with --ep cpu"),
}
"""Options of a timing that are wrong usage, and what the host says."""
OWN = """
from esm_agent.providers.base import ProviderOption
from esm_agent.providers.cpu import CpuProvider
from tests.providers.broken import act

class Own(CpuProvider):
    name = "own"
"""
CLASSES = {
    "no-file": (None, "there is no file"),
    "syntax": ("class Own(:\n", "invalid syntax"),
    "no-class": ("x = 1\n", "unknown execution provider class 'Own'"),
    "no-base": ("class Own: ...\n", "own.py:Own"),
    "import-raises": (fails("raises"), "the accelerator is on fire"),
    "import-exits": (fails("exits"), f"{STOPS} (exit code 7)"),
    "import-hangs": (fails("hangs"), f"{STOPS} (no answer for 3 s)"),
    "no-name": (OWN.replace('"own"', '""'), "the name '' is not a name"),
    "bad-name": (OWN.replace('"own"', '"a b"'), "the name 'a b' is not a name"),
    "number": (OWN.replace('"own"', "7"), "the name 7 is not a name"),
    "taken": (OWN.replace('"own"', '"cpu"'), "there is already a provider 'cpu'"),
    "not-there": (
        OWN + '    runtime_name = "NopeExecutionProvider"\n',
        "this onnxruntime has none",
    ),
    "options": (OWN + "    options = 7\n", "options is 7: give a tuple of ProviderOption"),
    "default": (
        OWN + '    options = (ProviderOption("n", "int", "many"),)\n',
        "the option 'n' has the default 'many': give a whole number",
    ),
    "init": (OWN + "    def __init__(self, device): act('raises')\n", "the accelerator is on fire"),
    "why-not": (OWN + "    def why_not(self): act('foreign')\n", "lost"),
    "prepare": (OWN + "    def prepare(self): act('raises')\n", "the accelerator is on fire"),
    "prepare-segv": (OWN + "    def prepare(self): act('segv')\n", "killed by SIGSEGV"),
    "configure": (
        OWN + "    def configure(self, session, options): session.no_such = options['no']\n",
        "own.py:Own: KeyError: 'no'",
    ),
    "providers": (OWN + "    def providers(self, options, use): return 7\n", "own.py:Own"),
    "identity": (OWN + "    def identity(self, device): return 7\n", "own.py:Own"),
    "findings": (OWN + "    def findings(self): return 7\n", "own.py:Own"),
}
"""Files with a provider of one's own, and why the agent does not start with it."""
LIBRARIES = {
    "no-equals": ("acme", "--ep-library acme: give NAME=PATH"),
    "no-name": ("=/tmp/x.so", "give NAME=PATH"),
    "bad-name": ("a b=/tmp/x.so", "the name 'a b' is not a name"),
    "no-file": ("own=/no/such.so", "there is no file /no/such.so"),
    "folder": ("own=/tmp", "there is no file /tmp"),
}
"""Values of ``--ep-library``, and why the agent does not start with it."""
REAL = {
    ("openvino", "no_such_option=1"): "no_such_option",
    ("openvino", "device_type=NO_SUCH"): "the OpenVINO provider did not load",
    ("openvino", "device_type=NPU"): "[OpenVINO] Device NPU is not available",
    ("openvino", "cache_dir=/tmp/x"): "options may not name files",
    ("openvino", "load_config=no.json"): "the OpenVINO provider did not load",
    ("qnn", "backend_type=cpu"): "did not run on QNN",
    ("qnn", "backend_path=/no/such.so"): "options may not name files",
}
"""Options of real providers that are wrong, or need a library that is not there."""


def written(path: Path, doc: str = "") -> Path:
    """A model of two nodes, whose text the provider reads."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Exp", ["r"], ["y"], name="exp"),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, doc_string=doc)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on Python's path with all broken packages, and a healthy model."""
    folder = tmp_path_factory.mktemp("packages")
    for name, (code, _) in PACKAGES.items():
        module = f"onnxruntime_ep_{name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(code.replace("{folder}", str(folder)))
    (folder / "onnxruntime_ep_acme.py").write_text(package())
    (folder / "text.so").write_text("no library")
    for module, metadata in (("bad_metadata", "Name: nothing else\n"), ("ü", "\n")):
        (folder / f"onnxruntime_ep_{module}.py").write_text(package())
        about = folder / f"onnxruntime_ep_{module}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(metadata)
    written(folder / "good.onnx")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """An agent with short limits that has found all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "find_providers", partial(broken.find, folder))
        patch.setattr(server, "Worker", partial(Worker, try_timeout_s=3))
        started = AgentServer("127.0.0.1", 0, confinement=Confinement(memory_bytes=8 << 30))
    try:
        yield f"127.0.0.1:{started.port}"
    finally:
        started.stop()


@pytest.fixture(scope="module")
def told(address: str) -> list[str]:
    """Lines of the agent about each provider."""
    return lines(address)


def time(address: str, model: Path, *words: object) -> tuple[int, dict[str, Any] | None, str]:
    """The exit code, the result and stderr of a short timing."""
    limits = ("--runs", 6, "--sessions", 1, "--timeout", 1, "--load-timeout", 1)
    done = esm_host("time", model, "--device", address, *limits, "--json", "-", "-q", *words)
    results = json.loads(done.stdout)["results"] if done.stdout.startswith("{") else [None]
    return done.exit_code, results[0], done.stderr


def assert_alive(address: str, folder: Path) -> None:
    code, result, stderr = time(address, folder / "good.onnx")
    assert code == 0, stderr
    assert result is not None
    assert result["ran_on"] == {"CPUExecutionProvider": 2}


@pytest.mark.parametrize(
    ("name", "words"), [*((n, w) for n, (_, w) in PACKAGES.items()), *FOUND.items()]
)
def test_a_provider_that_does_not_work_says_why(
    told: list[str], address: str, folder: Path, name: str, words: str
) -> None:
    (line,) = [line for line in told if line.startswith(f"{name}: ")]
    assert words in line
    code, result, stderr = time(address, folder / "good.onnx", "--ep", name)
    assert (code, result) == (2, None)
    assert len(stderr.splitlines()) == 1
    assert name in stderr


def test_two_providers_of_one_name_are_one(told: list[str]) -> None:
    first, second = [line for line in told if line.startswith("acme")]
    assert first == "acme 1.99"
    assert second == "acme: there is already a provider 'acme': choose another name"


def test_all_others_measure(address: str, folder: Path) -> None:
    assert_alive(address, folder)
    code, result, stderr = time(address, folder / "good.onnx", "--ep", "acme")
    assert code == 0, stderr
    assert result is not None
    assert result["ran_on"] == {broken.ACME: 2}


@pytest.mark.parametrize(("stage", "action"), MODELS)
def test_a_provider_that_fails_on_a_model(
    address: str, folder: Path, tmp_path: Path, stage: str, action: str
) -> None:
    kind, words = MODELS[stage, action]
    model = written(tmp_path / "bad.onnx", broken.plan(stage, action))
    code, result, stderr = time(address, model, "--ep", "acme")
    assert code == 1, stderr
    assert result is not None
    assert (result["status"], result["trimmed_mean_ms"]) == ("failed", None)
    assert result["samples_ms"] == []
    assert FailureKind(result["failure"]["kind"]).value == kind
    assert words in result["failure"]["message"]
    assert "\n" not in result["failure"]["message"]
    assert_alive(address, folder)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_option_is_wrong_usage(address: str, folder: Path, name: str) -> None:
    words, said = OPTIONS[name]
    code, result, stderr = time(address, folder / "good.onnx", *words)
    assert (code, result) == (2, None)
    assert said in stderr
    assert_alive(address, folder)


def test_a_value_with_a_path_is_refused(address: str, folder: Path) -> None:
    options = ("--ep", "acme", "--ep-option", "x=/etc/passwd")
    code, result, _ = time(address, folder / "good.onnx", *options)
    assert code == 1
    assert result is not None
    assert result["failure"]["kind"] == "invalid_input"
    assert "x=/etc/passwd: options may not name files" in result["failure"]["message"]
    assert_alive(address, folder)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_ones_own_that_is_broken_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, said = CLASSES[name]
    monkeypatch.setattr(server, "Worker", partial(Worker, try_timeout_s=3))
    if code is not None:
        (tmp_path / "own.py").write_text(code)
    with pytest.raises(UnusableOptionError) as caught:
        AgentServer("127.0.0.1", 0, providers=[f"{tmp_path}/own.py:Own"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_is_none_stops_the_start(name: str) -> None:
    text, said = LIBRARIES[name]
    with pytest.raises(UnusableOptionError) as caught:
        AgentServer("127.0.0.1", 0, ep_libraries=[text])
    assert said in str(caught.value)


@pytest.fixture(scope="module")
def wheels() -> Iterator[Callable[[str], str]]:
    """Addresses of agents with real wheels, started when they are first asked for."""
    with ExitStack() as started:

        @cache
        def address_of(wheel: str) -> str:
            return started.enter_context(agent(wheel))

        yield address_of


@pytest.mark.parametrize(("wheel", "option"), REAL)
def test_a_real_provider_that_is_set_up_wrongly(
    wheels: Callable[[str], str], folder: Path, wheel: str, option: str
) -> None:
    address = wheels(wheel)
    words = ("--ep", wheel, "--ep-option", option)
    code, result, stderr = time(address, folder / "good.onnx", *words)
    assert code == 1, stderr
    assert result is not None
    assert (result["status"], result["samples_ms"]) == ("failed", [])
    assert REAL[wheel, option] in result["failure"]["message"]
    assert "\n" not in result["failure"]["message"]
    assert_alive(address, folder)


def test_a_backend_that_is_none_is_wrong_usage(wheels: Callable[[str], str], folder: Path) -> None:
    """QNN would run on its default backend instead."""
    words = ("--ep", "qnn", "--ep-option", "backend_type=no_such")
    code, result, stderr = time(wheels("qnn"), folder / "good.onnx", *words)
    assert (code, result) == (2, None)
    assert "backend_type=no_such: give htp or cpu" in stderr
    assert_alive(wheels("qnn"), folder)
