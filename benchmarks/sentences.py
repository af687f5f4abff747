"""Length of the sentences of Markdown pages, and docstrings that open badly.

    python -m benchmarks.sentences README.md docs [--longest 20] [--docstrings 20]

Code blocks, tables, headings and images are left out. A sentence ends at ``. ! ? :`` before a space
and no small letter, or at the end of a paragraph or list item; a colon always ends one. Inline code
and a link's text count as they are read: code is one word.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "host/esm_host",
    "device_agent/esm_agent",
    "protos/esm_protos",
    "models_export/esm_models",
)
_BAD_OPENER = re.compile(
    r"(about|above|across|after|against|along|among|around|as|at|because|before|behind|below|beside"
    r"|between|beyond|by|during|for|from|how|if|in|inside|into|near|of|off|on|out|over|per|since|than"
    r"|that|through|to|under|until|up|upon|what|when|where|whether|which|while|who|whom|whose|why"
    r"|with|within|without)\b",
    re.IGNORECASE,
)

_FENCE = re.compile(r"\s*(```|~~~)")
_ASIDE = re.compile(r"\s*(\||#|!\[|<|!!!|===)")
_CODE_INDENT = "    "
_ITEM = re.compile(r"\s*([-*+]|\d+[.)])\s+")
_CODE = re.compile(r"(`+)(?:(?!\1).)*?\1", re.S)
_LINK = re.compile(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])")
_END = re.compile(r"""(?<=[.!?])[)\]"'*_]*\s+(?![a-z])|(?<=:)[*_]*\s+""")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|etc|cf|vs|approx|Fig|Eq|Sec|No|St)\.[)*_]*\s*$")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a page: its file, the line where it begins (from 1) and its text."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> int:
        """Number of words; inline code is one."""
        return sum(any(map(str.isalnum, word)) for word in self.text.split())


def sentences(path: Path, text: str) -> Iterator[Sentence]:
    """Yield the sentences of a Markdown page in order."""
    for line, paragraph in _paragraphs(text):
        # The text is shortened to what is read; newlines stay, so that lines can be counted.
        read = _CODE.sub(lambda code: "X" + "\n" * code[0].count("\n"), paragraph)
        read = _LINK.sub(
            lambda link: link[1] + "\n" * (link[0].count("\n") - link[1].count("\n")), read
        )
        start = 0
        for end in [*_ends(read), len(read)]:
            sentence = read[start:end]
            if any(map(str.isalnum, sentence)):
                before = read[:start] + sentence[: len(sentence) - len(sentence.lstrip())]
                yield Sentence(path, line + before.count("\n"), " ".join(sentence.split()))
            start = end


def _ends(read: str) -> Iterator[int]:
    """Yield where sentences end in a paragraph."""
    for match in _END.finditer(read):
        if not _ABBREVIATION.search(read[: match.end()]):
            yield match.end()


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each paragraph and list item, without code blocks and tables."""
    fenced, start, lines = False, 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence, item = _FENCE.match(line), _ITEM.match(line)
        aside = fence or fenced or not line.strip() or _ASIDE.match(line)
        if lines and (aside or item):
            yield start, "\n".join(lines)
            lines = []
        fenced ^= bool(fence)
        if aside or (not lines and not item and line.startswith(_CODE_INDENT)):
            continue
        start = start if lines else number
        lines.append(line[item.end() :] if item else line)


def pages(paths: list[Path]) -> Iterator[Path]:
    """Yield files, and the Markdown pages below folders."""
    for path in paths:
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def bad_docstrings(package: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield path, line and first line of docstrings that open badly."""
    for path in sorted(package.rglob("*.py")):
        if path.stem.endswith(("_pb2", "_pb2_grpc")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                if _BAD_OPENER.match(docstring):
                    line = getattr(node, "lineno", 1)
                    yield path, line, docstring.partition("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / "README.md", ROOT / "docs"])
    parser.add_argument("--longest", type=int, default=20, help="sentences shown (20)")
    parser.add_argument("--docstrings", type=int, default=20, help="docstrings shown (20)")
    args = parser.parse_args()
    found = {page: list(sentences(page, page.read_text())) for page in pages(args.paths)}
    everything = [sentence for page in found.values() for sentence in page]
    print(f"{'words':>6}{'longest':>9}{'sentences':>11}  page")
    averages = {p: statistics.mean(s.words for s in page) for p, page in found.items() if page}
    for path in sorted(averages, key=averages.__getitem__, reverse=True):
        page = found[path]
        longest = max(s.words for s in page)
        print(f"{averages[path]:6.1f}{longest:9}{len(page):11}  {path}")
    everything.sort(key=lambda sentence: -sentence.words)
    mean = statistics.mean(sentence.words for sentence in everything)
    print(f"{mean:6.1f}{everything[0].words:9}{len(everything):11}  all")
    print("\nThe longest sentences:")
    for sentence in everything[: args.longest]:
        print(f"{sentence.words:4}  {sentence.path}:{sentence.line}  {sentence.text}")
    bad = [one for package in PACKAGES for one in bad_docstrings(ROOT / package)]
    print(f"\n{len(bad)} docstrings open with a preposition or a question word:")
    for path, line, text in bad[: args.docstrings]:
        print(f"  {path.relative_to(ROOT)}:{line}  {text}")


if __name__ == "__main__":
    main()
