"""The systemd unit that `esm-agent install-service` writes."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esm_agent.operation import service
from esm_agent.operation.service import ServiceError, unit

ANALYZE = shutil.which("systemd-analyze")
# systemd before 254 says that it ignores these two.
NEW_KEYS = ("RestartSteps", "RestartMaxDelaySec")


def esm_agent(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esm_agent.cli", "install-service", *options]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def values(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_a_dry_run_prints_the_unit_and_writes_nothing(tmp_path: Path) -> None:
    options = ("--user", "--dry-run", "--", "--port", "7000", "--drain", "60")
    done = esm_agent(*options, XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (command,) = values(done.stdout, "ExecStart")
    assert command.startswith(str(Path(sys.executable).parent)), "this interpreter, no other"
    assert command.endswith("serve --port 7000 --drain 60")
    (stop_s,) = values(done.stdout, "TimeoutStopSec")
    assert float(stop_s) > 60, "systemd must not kill what drains"
    assert list(tmp_path.iterdir()) == []


def test_writes_a_users_unit_and_says_what_is_next(tmp_path: Path) -> None:
    done = esm_agent("--user", XDG_CONFIG_HOME=str(tmp_path))
    path = tmp_path / "systemd/user/esm-agent.service"
    assert path.read_text().startswith("[Unit]")
    for step in ("systemctl --user daemon-reload", "systemctl --user enable --now", "linger"):
        assert step in done.stdout


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--", "--prot", "7000"), "--prot"),
        (("--", "--drain", "-1"), "--drain"),
        (("--", "--until-stdin-closes"), "leave it out"),
    ],
)
def test_options_that_serve_would_refuse_are_refused_now(
    tmp_path: Path, options: tuple[str, ...], text: str
) -> None:
    done = esm_agent("--user", *options, XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 2
    assert text in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_systems_unit_is_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServiceError, match=r"sudo .*install-service --system") as caught:
        service.install("", system=True)
    assert "\n" not in str(caught.value)


def test_what_systemd_would_expand_arrives_as_given() -> None:
    (command,) = values(unit(["--host", 'a b%c$d"e\\'], 30, system=False), "ExecStart")
    assert command.endswith('serve --host "a b%%c$$d\\"e\\\\"')
    with pytest.raises(ServiceError, match="control characters"):
        unit(["--host", "a\nExecStart=/bin/evil"], 30, system=False)


def test_runs_as_nobody_in_particular_where_all_can_read_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(service, "_locked_folder", lambda path: None)
    text = unit([], 30, system=True)
    assert (values(text, "DynamicUser"), values(text, "User")) == (["yes"], [])
    monkeypatch.setattr(service, "_locked_folder", lambda path: Path("/root"))
    with pytest.raises(ServiceError, match=r"/root is closed.*/opt/esm"):
        unit([], 30, system=True)


def test_runs_as_who_installs_it_by_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    person = pwd.getpwall()[1]
    monkeypatch.setenv("SUDO_USER", person.pw_name)
    text = unit([], 30, system=True)
    assert (values(text, "DynamicUser"), values(text, "User")) == ([], [person.pw_name])
    assert values(text, "ReadWritePaths") == [f"-{person.pw_dir}/.config/esm-agent"]


def test_finds_the_folder_that_others_may_not_enter(tmp_path: Path) -> None:
    inner = tmp_path / "home" / "venv"
    inner.mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    inner.chmod(0o755)
    assert service._locked_folder(inner) == tmp_path / "home"
    assert service._locked_folder(Path("/usr")) is None


def test_a_users_unit_asks_for_nothing_that_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's systemd could not start it: status 218/CAPABILITIES."""
    monkeypatch.setattr(service, "_locked_folder", lambda path: None)
    for key in ("CapabilityBoundingSet", "ProtectClock", "ProtectKernelModules", "DynamicUser"):
        assert values(unit([], 30, system=True), key)
        assert not values(unit([], 30, system=False), key)


@pytest.mark.parametrize("system", [True, False])
def test_the_agent_survives_its_measuring_process(
    system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else systemd stops the whole service when the kernel kills one process for its memory."""
    monkeypatch.setattr(service, "_locked_folder", lambda path: None)
    assert values(unit([], 30, system), "OOMPolicy") == ["continue"]


def test_a_sudo_of_no_account_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "no-such-account")
    with pytest.raises(ServiceError, match="SUDO_USER is 'no-such-account'"):
        unit([], 30, system=True)


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")
@pytest.mark.parametrize("system", [True, False])
def test_systemd_understands_it(
    tmp_path: Path, system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_locked_folder", lambda path: None)
    path = tmp_path / "esm-agent.service"
    path.write_text(unit(["--port", "7000"], 30, system))
    manager = "--system" if system else "--user"
    done = subprocess.run(
        [ANALYZE or "", manager, "verify", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_COLOR": "0"},
    )
    complaints = [
        line
        for line in done.stderr.splitlines()
        if path.name in line and not any(key in line for key in NEW_KEYS)
    ]
    assert (done.returncode, complaints) == (0, []), done.stderr
