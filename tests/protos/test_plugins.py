"""Plug-ins of files: what is read once, what again, and what is told apart."""

import os
from pathlib import Path

import pytest

from esm_models.spaces import FAMILY
from esm_protos.plugins import PluginError, absolute, read_module

SPACE = """
from esm_models.space import Feature, SearchSpace

class Own(SearchSpace):
    name = "own"
    depths = ((1,),)
    features = (Feature("kernel", "k", (1, 3)),)
    size = {size}

    def network(self, net, units):
        return net.conv(net.input, self.size)
"""


def write(path: Path, size: int) -> str:
    path.write_text(SPACE.format(size=size))
    return f"{path}:Own"


def test_a_class_stays_the_same_until_its_file_changes(tmp_path: Path) -> None:
    name = write(tmp_path / "own.py", 8)
    first = FAMILY.load(name)
    assert FAMILY.load(name) is first
    write(tmp_path / "own.py", 16)
    os.utime(tmp_path / "own.py", (1, 1))  # within one tick of a coarse clock, say
    assert FAMILY.load(name).size == 16


def test_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    names = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        names.append(write(tmp_path / str(number) / "own.py", number))
    one, two = map(FAMILY.load, names)
    assert (one.size, two.size) == (1, 2)
    assert one.__module__ != two.__module__


def test_a_file_that_failed_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("import absent_library")
    for _ in range(2):
        with pytest.raises(PluginError, match=r"absent_library.*line 1"):
            read_module(path, "thing")


def test_only_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("own.py:Own") == f"{tmp_path / 'own.py'}:Own"
    assert [absolute(name) for name in ("resnet", "cosine:zcp", "")] == ["resnet", "cosine:zcp", ""]
