"""``esm-agent serve`` as a program."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esm_agent.cli import app

COMMAND = [sys.executable, "-m", "esm_agent.cli", "serve"]


def serve(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_says_where_it_listens_and_stops_on_sigterm() -> None:
    with serve("--port", "0") as agent:
        assert agent.stdout is not None
        address = agent.stdout.readline().split()[-1]
        host, port = address.split(":")
        with socket.create_connection((host, int(port))):
            pass
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=30) == 0


def test_stops_when_its_parent_does() -> None:
    with serve("--port", "0", "--until-stdin-closes") as agent:
        assert agent.stdout is not None
        assert agent.stdin is not None
        agent.stdout.readline()
        agent.stdin.close()
        assert agent.wait(timeout=30) == 0


def test_a_taken_port_is_an_error_with_the_cure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run(
            [*COMMAND, "--port", str(taken.getsockname()[1])], capture_output=True, text=True
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot listen on")
    assert "--port" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--port", "70000"), "--port"),
        (("--host", "300.1.1.1"), "'300.1.1.1' is not a host name or IP address"),
        (("--port", "-1"), "--port"),
        (("--metrics-port", "70000"), "--metrics-port"),
        (("--host", f"{'a' * 64}.lan"), "1 to 63 characters"),
        (("--host", "fd00:::5"), "not a host name or IP address"),
        (("--host", "192.168.1.20:7343"), "not a host name or IP address"),
    ],
)
@pytest.mark.parametrize("command", [("serve",), ("install-service", "--dry-run", "--")])
def test_what_cannot_be_listened_on_is_a_usage_error(
    command: tuple[str, ...], options: tuple[str, ...], words: str
) -> None:
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "2001:db8::5", "--insecure"), "no such address: choose another --host"),
        (("--host", "192.0.2.99", "--insecure"), "no such address: choose another --host"),
        (("--host", "pi4.invalid", "--insecure"), "cannot resolve the name: choose another --host"),
    ],
)
def test_says_why_it_cannot_listen(options: tuple[str, ...], words: str) -> None:
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot listen on ")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "variables", "origin"),
    [
        (("--provider", "{}/p.py:Npu"), {}, "--provider {}/p.py:Npu: "),
        ((), {"ESM_AGENT_PROVIDERS": "{}/p.py:Npu"}, "ESM_AGENT_PROVIDERS {}/p.py:Npu: "),
        (("--provider", "cpuu"), {}, "--provider cpuu: unknown execution provider 'cpuu'"),
        (("--metrics", "{}/p.py:Npu"), {}, "--metrics {}/p.py:Npu: there is no file"),
        (("--gpu", "9"), {"CUDA_VISIBLE_DEVICES": ""}, "--gpu 9: "),
    ],
)
def test_what_does_not_work_here_is_a_usage_error_that_names_its_origin(
    options: tuple[str, ...], variables: dict[str, str], origin: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, "--port", "0", *(option.format(tmp_path) for option in options)],
        capture_output=True,
        text=True,
        env=os.environ | {name: value.format(tmp_path) for name, value in variables.items()},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {origin.format(tmp_path)}")


def test_a_folder_of_the_environment_is_named_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    variables = {"ESM_AGENT_CONFIG": str(tmp_path / "file")}
    done = CliRunner().invoke(app, ["tokens", "list"], env=variables)
    assert done.stderr.startswith(f"error: ESM_AGENT_CONFIG: {tmp_path}/file")
    done = CliRunner().invoke(app, ["tokens", "list", "--config", str(tmp_path / "file")])
    assert done.stderr.startswith(f"error: {tmp_path}/file")


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("[::1]", "[::1]"), ("::", "[::]")])
def test_says_an_ipv6_address_so_that_it_can_be_pasted(host: str, shown: str) -> None:
    with serve("--host", host, "--port", "0", "--insecure") as agent:
        assert agent.stdout is not None
        address = agent.stdout.readline().split()[-1]
        found, _, port = address.rpartition(":")
        assert found == shown
        with socket.create_connection(("::1", int(port))):
            pass
        if host == "::":
            with socket.create_connection(("127.0.0.1", int(port))):
                pass
        agent.terminate()
        assert agent.wait(timeout=30) == 0


def doctor(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esm_agent.cli", "doctor", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_doctor_needs_no_running_agent() -> None:
    done = doctor("--seconds", 0.3)
    *rows, last = done.stdout.splitlines()
    words = {row.split()[0] for row in rows}
    assert "ok" in words
    assert words <= {"ok", "unknown", "advice", "unfit", "->"}
    fit = last.startswith("fit to measure")
    assert done.returncode == (0 if fit else 3), done.stderr


def test_the_doctor_writes_json(tmp_path: Path) -> None:
    done = doctor("--seconds", 0.2, "--json", "-")
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1
    assert done.returncode == (0 if data["fit"] else 3)
    for file in (tmp_path / "missing" / "file", tmp_path):
        done = doctor("--seconds", 600, "--json", file)
        assert done.returncode == 2
        assert done.stderr.startswith("error: cannot write")


def test_the_doctor_remembers_and_compares(tmp_path: Path) -> None:
    arguments = ("--seconds", 0.3, "--history", tmp_path / "history.jsonl", "--json", "-")

    def usual_pace() -> str:
        findings = json.loads(doctor(*arguments).stdout)["findings"]
        return next(each["text"] for each in findings if each["check"] == "usual pace")

    assert "no history yet" in usual_pace()
    assert "of 1 moment" in usual_pace()


def test_the_doctor_refuses_nonsense() -> None:
    assert doctor("--seconds", 0).returncode == 2


def test_the_agent_never_loads_what_it_does_not_ship() -> None:
    program = (
        "import sys, esm_agent.cli, esm_agent.serving.server, esm_agent.measure.backends;"
        "import esm_agent.diagnosis.doctor;"
        "print([m for m in ('torch', 'onnx', 'sqlalchemy', 'esm_host') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with serve("--port", "0", "--compiled-cache", str(tmp_path)) as agent:
        _, told = agent.communicate(timeout=60)
    assert agent.returncode == 2
    assert f"--compiled-cache {tmp_path}: others may write to it; chmod 700 it" in told


def test_the_process_that_serves_loads_no_runtime() -> None:
    """Only the measuring process needs ONNX Runtime, and it rests while the agent is idle."""
    code = "import sys, esm_agent.serving.server; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
