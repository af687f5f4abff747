"""Output of commands, in terminals and elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.cli.app import app
from esm_host.cli.live import print_bins
from esm_host.cli.table import Verdict, print_table
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Failure, FailureKind, Model

BARE = b"\x08\x08\x3a\x00"
"""A model without a node, to which anything unknown may be added."""
OF_BAD = b"\x12\x03bad"
"""Its producer."""

ESCAPE = re.compile(r"\033\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A terminal of so many columns, in place of stdout and stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def show(self, act: Callable[[], object], columns: int = 80) -> str:
        """Return what was shown, with its escapes."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        shown: list[bytes] = []
        reader = threading.Thread(target=_read, args=(master, shown))
        reader.start()
        with open(slave, "w", encoding="utf-8") as stream, self._monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, stream)
            act()
            stream.flush()
        reader.join()
        os.close(master)
        return b"".join(shown).decode().replace("\r\n", "\n")


def _read(master: int, shown: list[bytes]) -> None:
    try:
        while data := os.read(master, 65536):
            shown.append(data)
    except OSError:  # the other end is closed
        pass


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "ESM_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal(monkeypatch)


def esm_host(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A model that is stable, one of a long name, and one that fails, and a device for them."""

    def latency(model: Model) -> float | Failure:
        assert isinstance(model.data, bytes)
        if model.data.endswith(b"bad"):
            return Failure(FailureKind.UNSUPPORTED_OP, "no such operator")
        return 2.0

    profiler = FakeProfiler(latency, noise=0.02, references=())
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    paths = [tmp_path / name for name in ("small.onnx", f"{'long_name_' * 9}.onnx", "bad.onnx")]
    for path in paths:
        path.write_bytes(BARE + OF_BAD * (path.name == "bad.onnx"))
    return paths


def shown_words(text: str) -> str:
    """Return letters alone: what was broken into lines is whole again."""
    return re.sub(r"\s", "", ESCAPE.sub("", text))


@pytest.mark.parametrize("options", [[], ["--wide"]])
def test_a_terminal_of_80_columns_has_room_for_all(
    terminal: Terminal, models: list[Path], options: list[str]
) -> None:
    shown = terminal.show(lambda: esm_host("time", *models, "--quiet", *options))
    table, _, _ = shown.partition("warning:")
    assert max(len(ESCAPE.sub("", line)) for line in table.splitlines()) <= 80
    assert "…" not in table
    for heading in ("latency_ms", "verdict", *["p99_ms"] * bool(options)):
        assert heading in table
    for path in models:
        assert shown_words(path.name)[-12:] in shown_words(table)


def test_elsewhere_every_row_is_one_whole_line(
    models: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    esm_host("time", *models, "--quiet")
    out = capfd.readouterr().out
    assert "\033" not in out
    rows = [line for line in out.splitlines() if not line.startswith("  ")]
    assert len(rows) == 4
    for path, row in zip(models, rows[1:], strict=True):
        assert row.startswith(path.name)


def test_verdicts_have_colours_on_terminals_that_show_them(
    terminal: Terminal, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time() -> None:
        esm_host("time", *models)

    shown = terminal.show(time)
    assert re.search(r"\033\[3[23]m(stable|unresolved|noisy)\033\[0m", shown)
    assert "\033[31munsupported_op\033[0m" in shown
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            plain = terminal.show(time)
        assert "\033" not in plain
        assert "measuring" in plain, "nothing tells how far it is"


def test_help_is_plain_where_escapes_are_not_shown(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\033[1mOptions\033[0m" in terminal.show(lambda: esm_host("time", "--help"))
    monkeypatch.setenv("TERM", "dumb")
    assert "\033" not in terminal.show(lambda: esm_host("time", "--help"))


cells = st.text(st.characters(codec="ascii", categories=["L", "P"]), max_size=12)
texts = st.lists(cells.filter(bool), max_size=12).map(" ".join)
numbers = st.integers(0, 10**9).map(str)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]], list[int]]:
    """Return headings, rows, and which columns are numbers."""
    kinds = [texts, *draw(st.lists(st.sampled_from([texts, numbers]), max_size=12))]
    right = [number for number, kind in enumerate(kinds) if kind is numbers]
    rows = draw(st.lists(st.tuples(*kinds).map(list), max_size=5))
    headings = [f"heading {number}" for number in range(len(kinds))]
    return headings, rows, right


def printed(table: tuple[list[str], list[list[str]], list[int]], width: int | None) -> list[str]:
    headings, rows, right = table
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stream):
        patch.setattr("esm_host.cli.table.width_of", lambda stream: width)
        print_table(headings, rows, right)
    return stream.getvalue().splitlines()


@settings(deadline=None)
@given(tables(), st.integers(40, 120))
def test_no_table_is_wider_than_its_terminal_or_lacks_a_word(
    table: tuple[list[str], list[list[str]], list[int]], width: int
) -> None:
    headings, rows, _ = table
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    letters = shown_words("".join(lines))
    for row in (headings, *rows):
        for cell in row:
            for letter in set(cell) - {" "}:
                assert letters.count(letter) >= cell.count(letter)
    whole = printed(table, None)
    assert len(whole) == 1 + len(rows)
    for line, row in zip(whole[1:], rows, strict=True):
        assert all(cell in line for cell in row)


def test_texts_are_broken_before_columns_go_below_each_other() -> None:
    rows = [["a.onnx", "1.5", "k3e1 " * 20], ["b.onnx", "2", "k5e1"]]
    lines = printed((["model", "ms", "architecture"], rows, [1]), 40)
    assert lines[0].split() == ["model", "ms", "architecture"]
    assert "".join(lines).count("k3e1") == 20
    assert {line.index("k3e1") for line in lines if "k3e1" in line} == {lines[0].index("archi")}
    wide = printed((["model", *"abcdefgh"], [["a.onnx", *["123456"] * 8]], [*range(1, 9)]), 40)
    assert [line for line in wide if line.startswith("a.onnx")] == [
        "a.onnx  123456  123456  123456  123456",
        "a.onnx  123456  123456  123456  123456",
    ]


def test_a_verdict_is_text_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("model", "verdict"), [("a", Verdict("stable")), ("b", Verdict("of\n2", "failed"))])
    assert capsys.readouterr().out.splitlines() == [
        "model  verdict",
        "a      stable",
        "b      of 2",
    ]


def test_the_accuracy_of_a_bin_without_models_is_that_of_other_bins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bins = [
        {"depth_min": low, "depth_max": low + 4, "samples": samples, "accuracy_percent": percent}
        for low, samples, percent in ((4, 0, 90.2), (9, 20, 95.0), (14, 0, None))
    ]
    print_bins({"bins": bins, "trusted_models": 20, "accuracy_percent": 95.0}, None)
    told = [line.split("  ")[2:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [" ".join(" ".join(parts).split()) for parts in told] == [
        *("0 90.2 %, from other bins", "20 95.0 %", "0 -", "20 95.0 %")
    ]
