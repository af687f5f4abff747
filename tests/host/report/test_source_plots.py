"""The heat map of rank correlations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright import sync_api as playwright

from esm_host.report.plots import save
from esm_host.report.source_plots import correlations
from tests.host.report.timings import STRANGE

NAMES = ["b", "a.c[0]", STRANGE]
MATRIX = np.array([[1.0, 0.954, np.nan], [0.954, 1.0, -0.3], [np.nan, -0.3, 1.0]])


def test_cells_are_in_the_order_given() -> None:
    spec = correlations(NAMES, MATRIX, 0.9).to_dict()
    cells, words = spec["layer"]
    for layer in (cells, words):
        assert layer["encoding"]["x"]["sort"] == layer["encoding"]["y"]["sort"] == NAMES
    (rows,) = spec["datasets"].values()
    assert len(rows) == 9
    hundredths = " ".join(row["hundredths"] or "-" for row in rows)
    assert hundredths == "100 95 - 95 100 -30 - -30 100"
    assert rows[2]["correlation"] is None


@pytest.mark.parametrize("names", [NAMES, ["</script><script>alert(1)</script>", "b", "c"]])
def test_the_page_asks_for_nothing_and_runs_nothing_of_others(
    browser: playwright.Browser, tmp_path: Path, names: list[str]
) -> None:
    path = tmp_path / "map.html"
    save(correlations(names, MATRIX, 0.9), path)
    page = browser.new_page()
    requests: list[str] = []
    complaints: list[object] = []
    page.on("request", lambda request: requests.append(request.url))
    for event in ("console", "pageerror", "dialog"):
        page.on(event, lambda what: complaints.append(what))
    page.goto(path.as_uri())
    page.wait_for_selector("#chart svg")
    shown = page.locator("#chart svg text").all_text_contents()
    page.close()
    assert {"95", "-30"} <= set(shown)
    for name in names:  # long ones end in dots
        assert any(text.startswith(name[:20]) for text in shown)
    assert requests == [path.as_uri()]
    assert complaints == []
