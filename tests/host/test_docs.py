"""The documentation shows what the files hold, and its code runs."""

import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import markdown
import pytest
from mkdocs.config import load_config

from benchmarks.sentences import sentences
from esm_host import Settings, profile
from esm_host.cli.app import COMMANDS, load
from esm_host.exporting.torch_source import torch_source
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_models.spaces import SPACES, load_space
from esm_protos.messages import MeasureSpec

ROOT = Path(__file__).parents[2]


def test_no_page_shows_a_fence() -> None:
    """A fence that the site does not understand is text, and swallows what follows."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    site = markdown.Markdown(
        extensions=config.markdown_extensions, extension_configs=config.mdx_configs
    )
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert len(pages) > 20
    strayed = []
    for page in pages:
        html = site.reset().convert(page.read_text())
        if "```" in re.sub(r"<pre>.*?</pre>", "", html, flags=re.S) or "~~~" in html:
            strayed.append(page.name)
    assert strayed == []


def test_sentences_are_short() -> None:
    """As `python -m benchmarks.sentences` counts them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = [sentence for page in pages for sentence in sentences(page, page.read_text())]
    assert len(found) > 1000
    assert [f"{s.path}:{s.line}: {s.text}" for s in found if s.words >= 35] == []
    assert statistics.mean(sentence.words for sentence in found) < 18


def test_sentences_are_told_apart(tmp_path: Path) -> None:
    text = """# No sentence.

Of 0.5 ms, e.g. `a. B` and Lu et al. 2021. See [the
table](x.md#a-b): it is there! `c` too.

```
no sentence. None.
```

- One item, wrapped
  once
- another.

| no | sentence |
"""
    page = tmp_path / "page.md"
    assert [(s.line, s.words, s.text) for s in sentences(page, text)] == [
        (3, 10, "Of 0.5 ms, e.g. X and Lu et al. 2021."),
        (3, 3, "See the table:"),
        (4, 3, "it is there!"),
        (4, 2, "X too."),
        (10, 4, "One item, wrapped once"),
        (12, 1, "another."),
    ]


def test_the_readme_is_one_page_whose_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) < 8000
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []
    first_screen = text.partition("## ")[0]
    for command in ("make demo", "pip install '.[agent]'", "esm-host time mobilenet.onnx"):
        assert command in first_screen


def options_of(command: Any) -> Iterator[str]:
    """Return the options of a command and of those in it."""
    for inner in getattr(command, "commands", {}).values():
        yield from options_of(inner)
    for parameter in command.params:
        yield from (name for name in parameter.opts if name.startswith("--"))


@pytest.mark.parametrize("name", ["--debug", *(name for name, *_ in COMMANDS)])
def test_every_option_is_on_a_page(name: str) -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    text = "\n".join(page.read_text() for page in pages)
    options = [name] if name.startswith("--") else options_of(load(name))
    assert [o for o in options if not re.search(rf"{re.escape(o)}(?![\w-])", text)] == []


def test_the_torch_class_shown_is_the_one_of_resnet50() -> None:
    resnet50 = Architecture("resnet", tuple(("k3e1",) * depth for depth in (3, 4, 6, 3)))
    docs = (ROOT / "docs" / "export.md").read_text()
    text = torch_source(load_space("resnet"), resnet50).text
    (shown,) = re.findall(r"^```python\n(class .*?)^```", docs, re.M | re.S)
    assert shown in text
    assert f"resnet_{resnet50.key}/weights.pt" in docs


def test_the_search_loops_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Made-up latencies, whose median is near the limit in the text.
    profiler = FakeProfiler(lambda model: model.size_bytes / 1e5, noise=0.01)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    settings = Settings("any", resolution=32, width_mult=0.25, initial=15, max_models=15)
    spec = MeasureSpec(runs=5)
    profile(replace(settings, bins=1, block_size=5, folds=2, spec=spec), "runs/demo")
    page = ROOT / "docs" / "nas-loops.md"
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
    assert "n_trials=1000" in code
    names: dict[str, Any] = {}
    exec(compile(code.replace("n_trials=1000", "n_trials=60"), page, "exec"), names)
    latency, best, found = (names[name] for name in ("latency", "best", "found"))
    assert latency(best) <= 0.2
    assert latency(found) <= 0.2
    assert names["accuracy"](best) == max(map(names["accuracy"], names["fast"]))
    trials = names["study"].trials
    assert len(trials) == 60
    assert any(trial.constraints["latency"] > 0 for trial in trials), "a limit that limits"
    random, optimised = capsys.readouterr().out.splitlines()
    assert random.startswith(f"{len(names['fast'])} are fast enough, the best has ")
    assert optimised.endswith(" ms")
    assert len(list((tmp_path / "chosen").glob("*/model.py"))) == 2


def test_the_search_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profiler = FakeProfiler(lambda model: model.size_bytes / 1e4, noise=0.01)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    settings = Settings("any", space="nasbench201", initial=15, max_models=15)
    profile(replace(settings, bins=1, block_size=5, folds=2, spec=MeasureSpec(runs=5)), "runs/pi4")
    docs = (ROOT / "docs" / "search.md").read_text()
    function, program = re.findall(r"^```python\n(.*?)^```", docs, re.M | re.S)
    names: dict[str, Any] = {}
    exec(function, names)
    exec(program, names)
    found = names["found"]
    assert len(found.front)
    assert (found.front.values["latency_at_most_ms"] <= 30).all()
    decoded = found.problem.space.decode(found.front.codes)
    assert len(names["estimate"](decoded)) == len(decoded)


def test_the_short_forms_of_all_spaces_are_networks() -> None:
    page = (ROOT / "docs" / "search-spaces.md").read_text()
    table = page[page.index("| name | short form |") :].partition("\n\n")[0]
    shown = set()
    for row in table.splitlines()[2:]:
        names, forms = (re.findall("`(.+?)`", cell) for cell in re.split(r"(?<!\\)\|", row)[1:3])
        for name, form in zip(names, forms if len(forms) > 1 else forms * len(names), strict=True):
            text = form.replace("\\|", "|")
            assert load_space(name).read(text).to_text() == text
            shown.add(name)
    assert shown == set(SPACES)
