"""The page "Add an execution provider", followed: its file is served, and its commands are run."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from onnx import TensorProto, helper
from typer.testing import CliRunner

from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.worker import WorkerUnavailableError
from esm_agent.providers import FAMILY, make_provider
from esm_agent.providers.base import CONVOLUTIONS
from esm_agent.serving.server import AgentServer
from esm_host.cli.app import app
from esm_protos.messages import FailureKind, MeasureSpec
from tests.agent.fake_runtimes import OPENVINO, FakeRuntime
from tests.extending.page import PAGES, code_of, command, serving
from tests.helpers import ARITHMETIC

ROOT = Path(__file__).parents[2]
PAGE = (PAGES / "provider.md").read_text()
MOST_LINES = 60


def blocks(language: str) -> list[str]:
    return code_of(PAGE, language)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, which is the working directory: the page's file, and a model."""
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("python")
    assert code.startswith("# my_provider.py\n")
    assert len(code.splitlines()) < MOST_LINES
    (tmp_path / "my_provider.py").write_text(code)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path


def esm_host(words: list[str]) -> Result:
    assert words[0] == "esm-host"
    return CliRunner().invoke(app, words[1:])


def timed(words: list[str]) -> dict:
    """The JSON of a timing, made shorter than a user's."""
    result = esm_host([*words, "--runs", "20", "--quiet", "--json", "-"])
    assert result.exit_code == 0, result.output
    found: dict = json.loads(result.stdout)
    return found


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    assert blocks("shell")[0].startswith("esm-agent ")
    with serving(command(blocks("shell")[0]), folder) as address:
        yield address


def test_the_file_runs_on_an_agent_and_its_options_are_checked(address: str) -> None:
    info, time = (
        shlex.split(line.replace("pi4", address)) for line in blocks("shell")[1].splitlines()
    )
    told = esm_host(info).stdout
    assert "providers cpu, cpu-tuned" in told
    assert "--ep cpu-tuned --ep-option spinning=1 (0 or 1; 1 by default): Let idle" in told
    timing = timed(time)
    (result,) = timing["results"]
    assert (result["status"], result["provider"]) == ("success", "cpu-tuned")
    assert timing["context"]["spec"]["provider_options"] == {"spinning": "0", "arena": "0"}
    refused = esm_host([*time, "--ep-option", "spining=0"])
    assert refused.exit_code == 2
    assert refused.stderr == (
        "error: --ep-option spining=0: unknown option 'spining' of the provider cpu-tuned: did you "
        "mean 'spinning'? choose spinning (0 or 1), arena (0 or 1)\n"
    )


def test_the_local_device_takes_it_from_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, time = blocks("shell")[2].splitlines()
    monkeypatch.setenv(*export.removeprefix("export ").split("="))
    (result,) = timed(shlex.split(time))["results"]
    assert (result["status"], result["provider"]) == ("success", "cpu-tuned")


def test_an_agent_does_not_start_without_it(folder: Path) -> None:
    (folder / "my_provider.py").write_text("raise RuntimeError('no such board')\n")
    with pytest.raises(WorkerUnavailableError, match=r"no such board \(line 1 of .*\)") as caught:
        AgentServer("127.0.0.1", 0, providers=["my_provider.py:TunedCpu"])
    assert str(caught.value).startswith(f"--provider {folder}/my_provider.py:TunedCpu: ")


def test_the_class_of_another_provider_is_one_of_the_base(tmp_path: Path) -> None:
    _, code = blocks("python")
    assert code.startswith("# my_openvino.py\n")
    path = tmp_path / "my_openvino.py"
    path.write_text(code)
    own = FAMILY.load(f"{path}:Streams")
    runtime = FakeRuntime([OPENVINO, "CPUExecutionProvider"])
    provider = own(runtime=runtime)
    provider.prove()
    provider.load(CONVOLUTIONS, MeasureSpec(provider="openvino-streams", threads=3))
    assert runtime.settings[-1] == {"num_streams": "1", "num_of_threads": "3"}


FAILING = """
from esm_agent.providers.base import Provider, ProviderOption

class Board(Provider):
    name = "board"
    runtime_name = "CPUExecutionProvider"
    options = (ProviderOption("fail", "text", "no", "Hook that fails."),)
    may_fall_back = False

    def fail(self, options, hook):
        if options["fail"] == hook:
            raise KeyError("no such pin")

    def runtime_options(self, options, use):
        self.fail(options, "runtime_options")
        return {}

    def configure(self, session, options):
        self.fail(options, "configure")
"""


@pytest.mark.parametrize("hook", ["configure", "runtime_options"])
def test_an_error_of_a_hook_names_the_class_and_not_the_model(tmp_path: Path, hook: str) -> None:
    path = tmp_path / "board.py"
    path.write_text(FAILING)
    provider = make_provider(f"{path}:Board")
    spec = MeasureSpec(provider="board", provider_options={"fail": hook})
    model = UploadedModel("m", ARITHMETIC)
    assert provider.load(model, MeasureSpec(provider="board")).run() is None
    with pytest.raises(ModelError) as caught:
        provider.load(model, spec)
    failure = caught.value.failure
    assert failure.kind is FailureKind.CRASH
    assert failure.message.startswith(f"the provider board failed: {path}:Board: KeyError: ")
    assert failure.message.endswith(f"(line 12 of {path})")


@pytest.mark.programs
def test_the_class_does_what_every_provider_does(folder: Path) -> None:
    program, *words = shlex.split(blocks("shell")[3])
    assert program == "python"
    words = [word.replace("my_provider.py", f"{folder}/my_provider.py") for word in words]
    run = subprocess.run(
        [sys.executable, *words, "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout[-3000:]


def test_two_providers_of_an_agent_are_cases_and_one_may_refuse_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "board.py").write_text(FAILING)
    monkeypatch.setenv("ESM_AGENT_PROVIDERS", "board.py:Board")
    words = ["esm-host", "time", "model.onnx", "--ep", "board,cpu", "--runs", "20", "--json", "-"]
    both = json.loads(esm_host(words).stdout)["results"]
    assert [(r["provider"], r["status"]) for r in both] == [
        ("board", "success"),
        ("cpu", "success"),
    ]
    refused = esm_host([*words, "--ep-option", "board:fail=configure"])
    assert refused.exit_code == 1
    board, cpu = json.loads(refused.stdout)["results"]
    assert (board["failure"]["kind"], cpu["status"]) == ("crash", "success")
    assert (board["provider_options"], cpu["provider_options"]) == ({"fail": "configure"}, {})
    lacking = esm_host([*words, "--ep", "tensorrt"])
    assert lacking.exit_code == 2
    assert "unknown execution provider 'tensorrt' on the device" in lacking.stderr
    assert "choose cpu, board; esm-agent providers on the device tells why" in lacking.stderr
