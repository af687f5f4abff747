"""The agent in surroundings that lack something: it works, or says in one line what to do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments import (
    as_nobody,
    needs_nameless,
    needs_read_only_shm,
    with_read_only_shm,
)

SERVE = ("serve", "--port", "0", "--until-stdin-closes")


@needs_nameless
def test_serves_a_user_without_a_home_folder() -> None:
    done = as_nobody("esm_agent.cli", *SERVE)
    assert done.returncode == 0, done.stderr
    assert "listening on 127.0.0.1:" in done.stdout
    assert "no cache: this user has no home folder: set HOME or XDG_CACHE_HOME" in done.stderr


@needs_nameless
@pytest.mark.parametrize(
    "arguments",
    [("serve", "--tls"), ("pair",), ("tokens", "list"), ("cache",), ("install-service", "--user")],
)
def test_says_where_a_home_folder_is_missing(arguments: tuple[str, ...]) -> None:
    done = as_nobody("esm_agent.cli", *arguments)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this user has no home folder: set HOME or XDG_")
    assert done.returncode in (1, 2)


@needs_nameless
def test_a_folder_that_is_given_needs_no_home(tmp_path: Path) -> None:
    done = as_nobody("esm_agent.cli", "pair", "--config", tmp_path / "agent")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("esm-host devices add ")


@needs_read_only_shm
def test_measures_without_shared_memory_of_the_system() -> None:
    done = with_read_only_shm("esm_agent.cli", "doctor", "--seconds", "0.1")
    assert done.returncode in (0, 3), done.stderr
    assert "fit to measure" in done.stdout


def test_no_folder_for_temporary_files_is_one_line() -> None:
    program = (
        "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/missing']\n"
        "from esm_agent.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *SERVE], capture_output=True, text=True, input=""
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: no folder for temporary files is writable: set TMPDIR to one"
    )
    assert "Traceback" not in done.stderr


def test_a_folder_that_others_took_does_not_stop_the_agent(tmp_path: Path) -> None:
    """Its name tells the agent's number, which others can foresee; here nothing can be removed."""
    program = (
        "import os, pathlib, shutil, sys\n"
        "shutil.rmtree = lambda path, ignore_errors: None\n"
        "(pathlib.Path(os.environ['TMPDIR']) / f'esm-agent-{os.getpid()}').mkdir()\n"
        "from esm_agent.cli import main; main()"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, *SERVE], capture_output=True, text=True, input="", env=env
    )
    assert done.returncode == 0, done.stderr
    assert "listening on" in done.stdout


def test_its_own_folder_may_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    script = Path(sys.executable).with_name("esm-agent")
    command = f"rmdir {folder} && exec {script} {' '.join(SERVE)}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, input="", cwd=folder
    )
    assert done.returncode == 0, done.stderr


def test_standard_input_may_have_been_closed_from_the_beginning() -> None:
    command = f"exec {sys.executable} -m esm_agent.cli {' '.join(SERVE)} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_drains_when_it_is_told_to_stop(number: signal.Signals) -> None:
    """A terminal that closes sends SIGHUP."""
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        agent.send_signal(number)
        _, said = agent.communicate(timeout=30)
    assert agent.returncode == 0
    assert f"draining: signal={number.name}" in said


def test_nohup_is_respected() -> None:
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        ["nohup", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        agent.send_signal(signal.SIGHUP)
        agent.send_signal(signal.SIGTERM)
        _, said = agent.communicate(timeout=30)
    assert agent.returncode == 0
    assert "draining: signal=SIGTERM" in said
