"""Tables on stdout, complete and at most as wide as the terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence

from esm_protos.terminal import styled, width_of
from esm_protos.text import printable

_GAP = "  "
_NARROWEST = 16
"""Least width of a text column, in letters, before columns move below each other."""

_STYLES = {
    "green": ("stable", "converged", "transferred", "done", "free", "faster", "mended"),
    "yellow": (
        *("noisy", "unresolved", "undecided", "uncertain", "tolerated"),
        *("unfinished", "running", "busy"),
    ),
    "red": (
        *("throttled", "failed", "never_ran", "slower"),
        *("not converged", "below target", "unreachable"),
    ),
}


class Verdict(str):
    """Cell in green, yellow or red, on terminals that show colours."""

    style: str | None

    def __new__(cls, text: str, word: str | None = None) -> Verdict:
        """Create a cell.

        Args:
            text: Text of the cell.
            word: Word that decides the colour, by default the text. Unknown words have no colour.
        """
        cell = super().__new__(cls, printable(text))
        known = [style for style, words in _STYLES.items() if (word or text) in words]
        cell.style = known[0] if known else None
        return cell

    def shown(self) -> str:
        """Return the text, coloured if stdout shows colours."""
        return _in_style(self, self.style)


def _in_style(text: str, style: str | None) -> str:
    return text if style is None else styled(text, style, sys.stdout)


def print_markdown(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = ()
) -> None:
    """Print a table in GitHub's Markdown. Cells may hold untrusted text."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(printable(cell).replace('|', bar) for cell in cells)} |"

    bar = r"\|"

    print(line(headings))
    print(line("---:" if column in right else "---" for column in range(len(headings))))
    for row in rows:
        print(line(row))


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Container[int] = (),
    notes: Mapping[int, Sequence[str]] | None = None,
) -> None:
    """Print a table whose columns are as wide as their longest cell.

    In a narrower terminal, texts are wrapped. Columns that still do not fit are printed below the
    others, with the first column repeated. Elsewhere every row is one line. Cells may hold
    untrusted text.

    Args:
        headings: Headings of the columns.
        rows: Cells of each row. Rows with fewer cells widen the first column only.
        right: Indices of the right-aligned columns.
        notes: Lines under rows, by index of the row. Equal notes of neighbours are printed once.
    """
    table = [
        [cell if isinstance(cell, Verdict) else printable(cell) for cell in cells]
        for cells in (headings, *rows)
    ]
    under = {number + 1: tuple(map(printable, lines)) for number, lines in (notes or {}).items()}
    width = width_of(sys.stdout)
    groups = [list(range(len(headings)))]
    if width is not None:
        least = _narrowest(table, right)
        groups = _groups(least, width)
        if len(groups) > 1:  # the first column has room then
            least[0] = max(least[0], min(_widths(table)[0], width // 2))
            groups = _groups(least, width)
    for number, columns in enumerate(groups):
        shown = table
        if number:
            print()
            shown = [cells for cells in table if len(cells) == len(headings)]
        part = [[cells[column] for column in columns if column < len(cells)] for cells in shown]
        aligned = {place for place, column in enumerate(columns) if column in right}
        _print_part(part, aligned, {} if number else under, width)


def _full(table: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the columns of the rows that have all cells."""
    return list(zip(*(cells for cells in table if len(cells) == len(table[0])), strict=True))


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of columns without wrapping."""
    widths = [max(map(len, column)) for column in _full(table)]
    widths[0] = max(len(cells[0]) for cells in table)
    return widths


def _narrowest(table: Sequence[Sequence[str]], right: Container[int]) -> list[int]:
    """Return the least widths; numbers and words of headings are never broken."""
    least = []
    for number, ((heading, *cells), width) in enumerate(
        zip(_full(table), _widths(table), strict=True)
    ):
        longest = max(map(len, cells), default=0) if number in right else min(width, _NARROWEST)
        least.append(max(longest, *map(len, heading.split() or [""])))
    return least


def _groups(widths: Sequence[int], width: int) -> list[list[int]]:
    """Return the groups of columns that fit side by side; each begins with the first column."""
    groups, taken = [[0]], widths[0]
    for column, own in enumerate(widths[1:], start=1):
        if taken + len(_GAP) + own > width and len(groups[-1]) > 1:
            groups.append([0])
            taken = widths[0]
        groups[-1].append(column)
        taken += len(_GAP) + own
    return groups


def _print_part(
    table: Sequence[Sequence[str]],
    right: Container[int],
    under: Mapping[int, tuple[str, ...]],
    width: int | None,
) -> None:
    widths = _widths(table)
    if width is not None:
        least = _narrowest(table, right)
        while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
            most = max(range(len(widths)), key=lambda n: (widths[n] > least[n], widths[n]))
            if widths[most] <= least[most]:
                break
            widths[most] -= 1
    for row, cells in enumerate(table):
        room = widths[: len(cells)]
        whole = len(cells) == len(table[0])
        if not whole:  # its last cell takes the room of the missing cells
            room[-1] = max(sum(widths[len(room) - 1 :]), len(cells[-1]) if width is None else 0)
        for line in _lines(cells, room, right if whole else ()):
            print(line)
        if row in under and under.get(row + 1) != under[row]:
            for text in under[row]:
                print(textwrap.indent("\n".join(_broken(text, (width or 2) - 2)), "  "))


def _lines(cells: Sequence[str], widths: Sequence[int], right: Container[int]) -> list[str]:
    """Return the lines of a row."""
    broken = [_broken(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for number in range(max(map(len, broken))):
        pieces = []
        for column, parts in enumerate(broken):
            text = parts[number] if number < len(parts) else ""
            space = " " * (widths[column] - len(text))
            shown = _in_style(text, getattr(cells[column], "style", None)) if text else ""
            pieces.append(space + shown if column in right else shown + space)
        lines.append(_GAP.join(pieces).rstrip())
    return lines


def _broken(text: str, width: int) -> list[str]:
    """Return the lines of a wrapped text; a single line for width 0."""
    if not width or len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
