"""The documentation shows what the files hold."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_own_space_shown_is_the_one_in_the_file() -> None:
    code = (ROOT / "docs" / "own_space.py").read_text().partition('"""\n\n')[2]
    assert code in (ROOT / "docs" / "search-spaces.md").read_text()
