"""Both programs with standard streams that fail: files are written, exit codes are customary."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

BIN = Path(sys.executable).parent
READER_GONE = 141
NO_SPACE = "error: cannot write to standard output: No space left on device"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """By bash, with the programs on its path; the exit code is the program's, not the reader's."""
    return subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(folder), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in it has a name that ASCII lacks."""
    folder = tmp_path_factory.mktemp("streams")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "xy"]
    node = helper.make_node("Neg", ["x"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), folder / "m\xfcll.onnx")
    assert shell("esm-host time m*.onnx --runs 48 --json base.json", folder).returncode == 0
    data = json.loads((folder / "base.json").read_text())
    data["context"]["created_at"] = "another time"
    (folder / "new.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        (">&-", 0),
        (">/dev/full", 1),
        ("| true", READER_GONE),
        ("2>&-", 0),
        (">&- 2>&- <&-", 0),
    ],
)
def test_results_come_before_words(folder: Path, streams: str, code: int) -> None:
    out = folder / "comparison.json"
    out.unlink(missing_ok=True)
    command = f"esm-host compare base.json new.json --tolerance 1e9 --json {out} {streams}"
    result = shell(command, folder, PYTHONIOENCODING="ascii")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert result.returncode == code, result.stderr
    assert json.loads(out.read_text())["kind"] == "comparison"
    if code == 1:
        assert result.stderr.splitlines()[-1] == NO_SPACE


def test_a_timing_outlasts_its_reader(folder: Path) -> None:
    outputs = "--json timing.json --csv timing.csv"
    result = shell(
        f"esm-host time m*.onnx --runs 48 {outputs} | true", folder, PYTHONIOENCODING="ascii"
    )
    assert result.returncode == READER_GONE, result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((folder / "timing.json").read_text())["kind"] == "timing"
    assert "m\xfcll.onnx" in (folder / "timing.csv").read_text(encoding="utf-8")


def test_what_a_stream_cannot_encode_is_replaced(folder: Path) -> None:
    result = shell("esm-host compare base.json new.json", folder, PYTHONIOENCODING="ascii")
    assert "m?ll.onnx" in result.stdout
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert "m?ll.onnx" in shell("esm-host compare base.json new.json", folder, **plain).stdout


@pytest.mark.parametrize(
    "command",
    [
        "esm-host --help",
        "esm-agent --version",
        "esm-agent install-service --user --dry-run",
    ],
)
def test_every_command_of_both_programs_outlasts_its_streams(folder: Path, command: str) -> None:
    for streams, code in ((">&- 2>&-", 0), (">/dev/full", 1), ("| true", READER_GONE)):
        result = shell(f"{command} {streams}", folder)
        assert result.returncode == code, f"{streams}: {result.stderr}"
        assert result.stderr == (f"{NO_SPACE}\n" if code == 1 else ""), streams


def test_errors_keep_their_exit_code_without_streams(folder: Path) -> None:
    assert shell("esm-host time none.onnx >&- 2>&-", folder).returncode == 2
    assert shell("esm-agent serve --port words >/dev/full 2>&-", folder).returncode == 2


def test_an_agent_serves_on_when_its_reader_is_gone(folder: Path) -> None:
    serve = "esm-agent serve --port 0 --cache cache --until-stdin-closes"
    result = shell(f"sleep 2 | {serve} 2>log | true; exit ${{PIPESTATUS[1]}}", folder)
    assert result.returncode == READER_GONE
    assert "stopped" in (folder / "log").read_text()
