"""Code and commands of a page, and an agent that is started as the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs" / "extending"
PROGRAMS = {
    "esm-agent": [sys.executable, "-m", "esm_agent.cli"],
    "esm-host": [sys.executable, "-c", "from esm_host.cli import main; main()"],
}


def code_of(text: str, language: str) -> list[str]:
    """Code of a page in a language, block by block."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def command(text: str) -> list[str]:
    """Arguments of a command of a page, run by this interpreter."""
    program, *arguments = shlex.split(text)
    return [*PROGRAMS[program], *arguments]


@contextmanager
def serving(words: Sequence[str], folder: Path) -> Iterator[str]:
    """Address of an agent started in a folder by this command, on a free port."""
    serve = [*words, "--port", "0", "--until-stdin-closes"]
    process = subprocess.Popen(
        serve, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()
