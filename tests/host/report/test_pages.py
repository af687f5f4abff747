"""Reports as their readers meet them: in a browser, by mouse, keyboard and screen reader."""

from __future__ import annotations

import contextlib
import re
from itertools import pairwise

import pytest
from playwright import sync_api as playwright

from tests.host.report.conftest import Opened
from tests.host.report.timings import STRANGE

pytestmark = pytest.mark.programs

CAMPAIGN = ["predicted", "residuals-0", "residuals-1", "residuals-2", "rounds", "pace"]
CAMPAIGN += ["deviations"]
TIMING = [f"result-{n}-{what}" for n in range(7) for what in ("time", "distribution")]
TIMING.insert(0, "latencies")
TIMING += [
    "operators-2",
    "paces-0",
    "paces-1",
    "states-clock-mhz",
    "states-temperature-c",
    "states-gpu-clock-mhz",
]
TRANSFER = [*CAMPAIGN[:-3], "held-out", *CAMPAIGN[-3:-1], "paces", "deviations"]
SEARCH = ["front-0", "hypervolume", "off"]
PAGES = [
    ("campaign_report", CAMPAIGN),
    ("timing_report", TIMING),
    ("transfer_report", TRANSFER),
    ("search_report", SEARCH),
    ("comparison_report", ["change"]),
    ("study_report", ["tau-0", "accuracy-percent-0"]),
]


@pytest.fixture(params=PAGES, ids=[name.removesuffix("_report") for name, _ in PAGES])
def report(request: pytest.FixtureRequest) -> tuple[Opened, list[str]]:
    name, figures = request.param
    return request.getfixturevalue(name), figures


def test_opens_without_a_network_and_draws_every_figure(report: tuple[Opened, list[str]]) -> None:
    opened, figures = report
    page = opened.page
    assert opened.complaints == []
    assert opened.requests == [page.url]
    drawn = page.locator("figure").evaluate_all(
        """figures => figures.map(figure => {
            const svg = figure.querySelector(".chart svg");
            const box = svg.getBoundingClientRect();
            const marks = svg.querySelectorAll(".role-mark path, .role-mark line, .role-mark rect");
            return [figure.id, box.width > 200 && box.height > 80, marks.length > 1];
        })"""
    )
    assert drawn == [[name, True, True] for name in figures]
    assert page.locator("h1").count() == 1
    assert STRANGE.removeprefix("</") in page.locator("body").inner_text()
    assert page.locator("img").count() == 0, "a name became an element"


def test_headings_do_not_skip_a_level(report: tuple[Opened, list[str]]) -> None:
    page = report[0].page
    levels = page.locator("h1, h2, h3, h4, h5, h6").evaluate_all(
        "all => all.map(heading => Number(heading.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_sort_by_click_and_by_keyboard(campaign_report: Opened) -> None:
    page = campaign_report.page
    table = page.locator("#slowest")
    head = table.get_by_role("columnheader", name="blocks")

    def depths() -> list[int]:
        return [int(text) for text in table.locator("tbody td:nth-child(2)").all_inner_texts()]

    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert depths() == sorted(depths(), reverse=True)
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert depths() == sorted(depths())
    assert len(set(depths())) > 1, "nothing to sort"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert table.locator("th[aria-sort]").inner_text().startswith("measured")


def test_numbers_that_are_missing_come_last(timing_report: Opened) -> None:
    table = timing_report.page.locator("#all-results")
    button = table.get_by_role("button", name="trimmed mean")
    for _ in range(2):
        button.click()
        assert table.locator("tbody tr").last.locator("td").nth(1).inner_text() == "\N{EN DASH}"


def test_a_chart_has_its_data_as_a_table(campaign_report: Opened) -> None:
    page = campaign_report.page
    figure = page.locator("figure#predicted")
    figure.locator("summary").focus()
    page.keyboard.press("Enter")
    table = figure.get_by_role("table", name="Predicted against measured latency")
    table.wait_for()
    measured = page.locator("dl.key dd").nth(2).evaluate("dd => dd.firstChild.data")
    assert table.locator("tbody tr").count() == int(measured)
    assert table.locator("thead th[scope=col]").count() == 7
    row = table.locator("tbody tr").first
    assert "|" in row.locator("th[scope=row]").inner_text()
    assert float(row.locator("td").nth(1).inner_text()) > 0


def test_hovering_tells_the_architecture(campaign_report: Opened) -> None:
    page = campaign_report.page
    points = page.locator("#predicted .mark-symbol.role-mark path")
    points.last.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    text = tooltip.inner_text()
    assert re.search(r"architecture\s+(\d\*)?k\de", text)
    assert re.search(r"measured\s+[\d.]+ ms", text)
    assert re.search(r"verdict\s+\w+", text)


def test_a_name_in_a_tooltip_stays_text(timing_report: Opened) -> None:
    opened = timing_report
    opened.page.locator("#latencies .mark-symbol.role-mark path").first.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "<img src=x onerror=alert(1)>" in tooltip.inner_text()
    assert tooltip.locator("img").count() == 0
    assert opened.complaints == []


def test_light_and_dark_differ_also_when_the_scheme_changes(campaign_report: Opened) -> None:
    def colours() -> tuple[str, ...]:
        return (
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            page.locator("#rounds .mark-line path").first.get_attribute("stroke"),
            page.locator("#rounds svg").evaluate("svg => svg.style.backgroundColor"),
        )

    page = campaign_report.page
    light = colours()
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-scheme=dark]", timeout=60_000)
    dark = colours()
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html[data-scheme=light]", timeout=60_000)
    assert colours() == light
    assert all(one != other for one, other in zip(dark, light, strict=True))


def test_nothing_is_cut_off_on_a_narrow_screen(report: tuple[Opened, list[str]]) -> None:
    page = report[0].page
    for width in (360, 320):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_function(
            """width => [...document.querySelectorAll("figure svg")].every(
                svg => svg.getBoundingClientRect().right <= width)""",
            arg=width,
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        beyond = page.locator("h1, h2, h3, figcaption, p, dl, summary, caption span").evaluate_all(
            """(all, width) => all.filter(e => e.getBoundingClientRect().right > width + 1)
                .map(e => e.outerHTML.slice(0, 80))""",
            width,
        )
        assert beyond == []
    page.set_viewport_size({"width": 1280, "height": 900})


# Elements that reach beyond the page or hide a part of themselves; texts of charts beyond these.
CUT = """width => [
    ...[...document.body.querySelectorAll("header *, nav *, main *, footer *")].filter(element => {
        if (element.closest("svg, .hidden") || !element.offsetParent) return false;
        const hides = getComputedStyle(element).overflowX !== "visible";
        return element.getBoundingClientRect().right > width + 1
            || (hides && element.scrollWidth > element.clientWidth + 1);
    }).map(element => element.outerHTML.slice(0, 120)),
    ...[...document.querySelectorAll("figure svg text")].filter(text => {
        const box = text.getBoundingClientRect();
        const chart = text.closest(".chart").getBoundingClientRect();
        return text.textContent.includes("\u2026") || box.width && (
            box.left < chart.left - 1 || box.right > chart.right + 1
            || box.top < chart.top - 1 || box.bottom > chart.bottom + 1);
    }).map(text => text.textContent),
]"""


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_everything_is_shown_whole(report: tuple[Opened, list[str]], width: int) -> None:
    """On a phone, a laptop and a large screen."""
    opened, _ = report
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    with contextlib.suppress(playwright.TimeoutError):  # charts take a moment
        page.wait_for_function(f"width => !({CUT})(width).length", arg=width, timeout=5_000)
    assert page.evaluate(CUT, width) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width >= 1280:
        with contextlib.suppress(playwright.TimeoutError):  # tables follow the width a moment later
            page.wait_for_function("() => !document.querySelector('.cards')", timeout=5_000)
        assert page.locator(".cards").count() == 0, "tables are tables where there is room"
    assert opened.complaints == []
    page.set_viewport_size({"width": 1280, "height": 900})


def test_cards_of_a_phone_have_headings_and_sort(timing_report: Opened) -> None:
    page = timing_report.page
    page.set_viewport_size({"width": 390, "height": 900})
    table = page.locator(".cards #all-results")
    verdict = table.locator("tbody tr").first.locator("td").last
    assert verdict.get_attribute("data-label") == "verdict"
    assert "verdict" in verdict.evaluate("td => getComputedStyle(td, '::before').content")
    table.get_by_role("button", name="trimmed mean").click()
    means = table.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert float(means[0].split()[-1]) == 31.68
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("() => !document.querySelector('.cards')")


def test_commands_are_copied(campaign_report: Opened) -> None:
    page = campaign_report.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command = page.locator(".command").first
    command.get_by_role("button").click()
    playwright.expect(command.get_by_role("button")).to_contain_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == command.locator("code").inner_text()
    assert copied.startswith("esm-host predict ")


def test_settings_are_options_with_values(campaign_report: Opened, timing_report: Opened) -> None:
    for opened in (campaign_report, timing_report):
        settings = opened.page.locator("#how .facts").last
        for name, value in zip(
            settings.locator("dt").all_inner_texts(),
            settings.locator("dd").all_inner_texts(),
            strict=True,
        ):
            assert re.fullmatch(r"--[a-z0-9-]+", name)
            assert value not in ("None", "", "no")
        assert "None" not in opened.page.locator("#how").inner_text().split()
    told = campaign_report.page.locator("#how").inner_text()
    assert re.search(r"--target-accuracy\s+95 %", told)


def test_figures_and_tables_have_names(report: tuple[Opened, list[str]]) -> None:
    opened, figures = report
    page = opened.page
    tree = page.locator("body").aria_snapshot()
    named = re.findall(r'^\s*- figure "(.+?)"', tree, flags=re.MULTILINE)
    assert len(named) == len(figures)
    main = page.locator("main").aria_snapshot()  # a tooltip is a table as well
    tables = re.findall(r"^\s*- '?table( \".+?\")?", main, flags=re.MULTILINE)
    assert tables, main
    assert all(tables)
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert re.search(rf"^\s*- {landmark}\b", tree, flags=re.MULTILINE), landmark
    names = page.locator(".chart").evaluate_all("all => all.map(chart => chart.ariaLabel)")
    assert all(names), "a chart without a description"


def test_contrast_of_text_and_marks() -> None:
    from esm_host.report.theme import DARK, LIGHT

    for theme in (LIGHT, DARK):
        for colour in (theme.text, theme.muted, theme.accent, theme.alarm, theme.categories[2]):
            assert _contrast(colour, theme.background) >= 4.5
        for colour in (*theme.categories, *theme.ramp):
            assert _contrast(colour, theme.background) >= 3


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
