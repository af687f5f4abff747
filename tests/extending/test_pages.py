"""The "add a ..." pages, followed: their file is written, and their commands are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esm_host import encoding, predictors, sampling
from esm_host.cli.app import app
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models import spaces
from esm_protos.plugins import Family
from tests.extending.page import PAGES, code_of
from tests.helpers import undraw
from tests.host.fake_campaign import latency

ROOT = Path(__file__).parents[2]
FAMILIES = {
    "space": spaces.FAMILY,
    "encoding": encoding.FAMILY,
    "predictor": predictors.FAMILY,
    "sampler": sampling.FAMILY,
}
MOST_LINES = 60
TARGET_NOT_REACHED = 3


@dataclass(frozen=True)
class Page:
    """A page, and its first file; all are in a folder, which is the working directory."""

    family: Family
    text: str
    file: Path

    def blocks(self, language: str) -> list[str]:
        return code_of(self.text, language)

    @property
    def commands(self) -> list[list[str]]:
        lines = "".join(self.blocks("shell")).splitlines()
        return [shlex.split(line) for line in lines]


@pytest.fixture(params=FAMILIES)
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    text = (PAGES / f"{request.param}.md").read_text()
    written = []
    for code in code_of(text, "python"):
        named = re.match(r"# (\S+\.py)\n", code)
        if named:
            assert len(code.splitlines()) <= MOST_LINES
            written.append(tmp_path / named[1])
            written[-1].write_text(code)
    monkeypatch.chdir(tmp_path)
    profiler = FakeProfiler(latency, noise=0.01)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    undraw(monkeypatch)
    page = Page(FAMILIES[request.param], text, written[0])
    for block in page.blocks("toml"):
        if "study" in tomllib.loads(block):
            Path("study.toml").write_text(block)
    return page


def test_the_commands_work(page: Page) -> None:
    commands = [words for program, *words in page.commands if program == "esm-host"]
    assert len(commands) >= 3
    for words in commands:
        quick = words[0] == "profile" and not {"--predictor", "--resume"} & set(words)
        result = CliRunner().invoke(app, [*words, *(["--predictor", "ridge"] if quick else [])])
        allowed = (0, TARGET_NOT_REACHED) if words[0] == "profile" else (0,)
        assert result.exit_code in allowed, f"{words}: {result.output} {result.exception!r}"


@pytest.mark.programs
def test_the_class_does_what_all_of_its_kind_do(page: Page) -> None:
    (words,) = [words for program, *words in page.commands if program == "python"]
    words = [word.replace(page.file.name, str(page.file)) for word in words]
    more = ("-p", "no:cacheprovider")
    run = subprocess.run(
        [sys.executable, *words, *more], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert re.search(r"\d+ passed", run.stdout) or "%]" in run.stdout


def test_a_package_offers_it_by_name(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project,) = [
        each["project"]
        for each in map(tomllib.loads, page.blocks("toml"))
        if "entry-points" in each.get("project", {})
    ]
    ((group, points),) = project["entry-points"].items()
    ((name, where),) = points.items()
    assert group == page.family.group
    package, module = where.partition(":")[0].split(".")
    site = tmp_path / "site"
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").touch()
    (site / package / f"{module}.py").write_text(page.file.read_text())
    installed = site / f"{package}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{group}]\n{name} = {where}\n")
    for known in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.syspath_prepend(str(site))
    assert name in page.family.names()
    assert page.family.load(name).__module__ == f"{package}.{module}"
    for loaded in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
