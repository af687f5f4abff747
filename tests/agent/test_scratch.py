"""Uploads of agents that were killed do not pile up."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from esm_agent.serving.scratch import make_scratch, temporary_folder


def test_removes_what_the_dead_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        for name in (living.pid, dead.pid, "notes"):
            (tmp_path / f"esm-agent-{name}").mkdir()
        scratch = make_scratch()
        assert scratch.is_dir()
        assert scratch.stat().st_mode & 0o077 == 0
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {f"esm-agent-{living.pid}", "esm-agent-notes", scratch.name}
        living.communicate(b"\n")


def test_a_process_keeps_its_own_folders_and_removes_those_of_its_number(tmp_path: Path) -> None:
    """The first process of a container has the same number each time."""
    before = tmp_path / f"esm-agent-{os.getpid()}-before"
    before.mkdir()
    first, second = make_scratch(tmp_path), make_scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([first, second])


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_name_that_somebody_else_took_is_no_trouble(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder for all users' temporary files nobody removes what others made."""
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    taken = tmp_path / f"esm-agent-{os.getpid()}"
    if kind == "folder":
        taken.mkdir()
    elif kind == "file":
        taken.touch()
    else:
        taken.symlink_to(tmp_path)
    scratch = make_scratch(tmp_path)
    assert scratch.is_dir()
    assert scratch.stat().st_uid == os.getuid()
    assert taken.exists()


def test_what_the_system_cleared_is_made_again_unless_somebody_took_its_name(
    tmp_path: Path,
) -> None:
    scratch = tmp_path / "esm-agent-1"
    with temporary_folder(scratch) as folder:
        assert folder.is_dir()
    assert scratch.stat().st_mode & 0o077 == 0
    scratch.rmdir()
    scratch.symlink_to(tmp_path)
    with pytest.raises(PermissionError), temporary_folder(scratch):
        pass
