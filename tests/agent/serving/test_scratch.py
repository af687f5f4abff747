"""Uploads of agents that were killed do not pile up, and living agents keep theirs."""

import subprocess
import sys
from pathlib import Path

import pytest

from esm_agent.serving.scratch import Scratch

AGENT = """
import sys
from pathlib import Path
from esm_agent.serving.scratch import Scratch
print(Scratch(Path(sys.argv[1])).path, flush=True)
input()
"""


def agent(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "esm-agent-notes").mkdir()
    (tmp_path / "esm-agent-uploads-mine").mkdir()
    with agent(tmp_path) as living, agent(tmp_path) as dead:
        try:
            folders = {}
            for name, process in (("living", living), ("dead", dead)):
                assert process.stdout is not None
                folders[name] = Path(process.stdout.readline().strip())
            dead.kill()
            dead.wait()
            scratch = Scratch(tmp_path)
            assert scratch.path.stat().st_mode & 0o077 == 0
            names = {path.name for path in tmp_path.iterdir()}
            assert names == {
                "esm-agent-notes",
                "esm-agent-uploads-mine",
                folders["living"].name,
                scratch.path.name,
            }
        finally:
            living.kill()
            dead.kill()


def test_agents_of_one_process_number_keep_their_folders(tmp_path: Path) -> None:
    """Two containers count their processes from 1 each, and may share a cache."""
    first, second = Scratch(tmp_path), Scratch(tmp_path)
    third = Scratch(tmp_path)
    assert len({first.path, second.path, third.path}) == 3
    assert first.path.is_dir()
    assert second.path.is_dir()
    first.close()
    assert not first.path.exists()
    assert second.path.is_dir()


def test_what_the_system_cleared_is_made_again_and_locked(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    scratch.path.rmdir()
    with scratch.folder() as folder:
        assert folder.is_dir()
        assert scratch.path.stat().st_mode & 0o077 == 0
        Scratch(tmp_path)
        assert folder.is_dir(), "another agent took it for a dead one's"


def test_a_name_that_was_taken_is_not_written_to(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    scratch.path.rmdir()
    scratch.path.symlink_to(tmp_path)
    with pytest.raises(PermissionError), scratch.folder():
        pass
