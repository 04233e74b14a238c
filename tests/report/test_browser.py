"""The report in a real browser: no errors, plots drawn, tables sortable, light, dark and narrow."""

from __future__ import annotations

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from secfl.report.facts import read_run
from secfl.report.page import run_page, write_page
from secfl.report.study import study_page
from secfl.report.study_files import read_study

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed"
)


@pytest.fixture(scope="module")
def page(private_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(run_page(read_run(private_run)), path)
    return path


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1200,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(180)
    yield driver
    driver.quit()


def media(browser, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def pixels(browser, element=None) -> np.ndarray:
    """What is drawn in the window, or at an element anywhere on the page."""
    settings = {"format": "png"}
    if element is not None:
        box = browser.execute_script(
            "const b = arguments[0].getBoundingClientRect();"
            "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height, scale: 1}",
            element,
        )
        settings |= {"clip": box, "captureBeyondViewport": True}
    png = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", settings)["data"])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def opened(browser, page):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page.as_uri())
    WebDriverWait(browser, 180).until(
        lambda driver: driver.execute_script(
            "return document.readyState === 'complete' && (!document.querySelector('figure.plot') ||"
            " window.Bokeh !== undefined && Bokeh.documents.every(d => d.is_idle))"
        )
    )
    return browser


class TestReport:
    def test_the_console_has_no_errors_and_nothing_was_asked_of_a_network(self, browser, page):
        opened(browser, page)
        assert not [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert not [name for name in loaded if not name.startswith(("data:", "blob:"))]

    def test_every_plot_is_drawn_in_light_and_in_dark(self, browser, page):
        from selenium.webdriver.common.by import By

        papers = {}
        for scheme in ("light", "dark"):
            media(browser, scheme)
            opened(browser, page)
            papers[scheme] = pixels(browser)[5, 5].mean()
            plots = browser.find_elements(By.CSS_SELECTOR, "figure.plot .canvas")
            assert len(plots) == 4
            for plot in plots:
                seen = pixels(browser, plot)
                coloured = np.ptp(seen, axis=2) > 60
                assert coloured.mean() > 1e-3, f"{scheme}: an empty plot"
                ink = np.abs(seen - seen[2, 2]).sum(axis=2).max()
                assert ink > 300, f"{scheme}: labels hardly differ from the paper"
        assert papers["light"] > 200 > 60 > papers["dark"]

    def test_a_click_or_the_keyboard_sorts_the_table_of_adversaries(self, browser, page):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        opened(browser, page)
        table = browser.find_element(By.ID, "adversary-table")
        button = next(
            one for one in table.find_elements(By.CSS_SELECTOR, "th button") if one.text.startswith("ε")
        )

        def shown() -> list[float]:
            cells = table.find_elements(By.CSS_SELECTOR, "td[data-value]")
            return [float(cell.get_attribute("data-value")) for cell in cells]

        before = shown()
        browser.execute_script("arguments[0].click()", button)
        assert shown() == sorted(before) != before
        button.send_keys(Keys.ENTER)
        assert shown() == sorted(before, reverse=True)
        heads = table.find_elements(By.CSS_SELECTOR, "th[aria-sort]")
        assert [head.get_attribute("aria-sort") for head in heads] == ["descending"]

    def test_a_phone_needs_no_sideways_scrolling(self, browser, page):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
        )
        opened(browser, page)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360
        assert np.ptp(pixels(browser)) > 100

    def test_text_has_contrast_in_light_and_in_dark(self, browser, page):
        """WCAG 2 level AA: 4.5 to 1 between every ink and every paper it stands on."""
        for scheme in ("light", "dark"):
            media(browser, scheme)
            opened(browser, page)
            inks = colours(browser, ("--ink", "--soft", "--link", "--good", "--care", "--bad"))
            for paper in colours(browser, ("--paper", "--panel")):
                for ink in inks:
                    assert contrast(ink, paper) >= 4.5, (scheme, ink, paper)

    def test_it_prints_on_white_paper(self, browser, page):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        opened(browser, page)
        (paper,) = colours(browser, ("--paper",))
        assert paper == (255, 255, 255)


def test_printed_from_a_dark_screen_the_plots_are_dark_on_white(browser, page):
    media(browser, "dark")
    opened(browser, page)
    ink = "return Bokeh.documents[0].get_model_by_name(THEMED[0]).axis_label_text_color"
    on_screen = browser.execute_script(ink)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    (paper, printed) = colours(browser, ("--paper", "--ink"))
    assert browser.execute_script(ink) != on_screen
    assert contrast(printed, paper) > 10
    assert browser.execute_script(ink) == "#000"


@pytest.mark.parametrize("name", ["dvt", "universal", "adaptive-dp", "dp-curve", "unlike models"])
class TestOtherPages:
    """The pages of studies, from the files that the project ships, and of a run of unlike models."""

    @pytest.fixture
    def other(self, name, project, request, tmp_path):
        path = tmp_path / "report.html"
        if name == "unlike models":
            write_page(run_page(read_run(request.getfixturevalue("unlike_run"))), path)
        else:
            write_page(study_page(read_study(project / "docs" / "results" / name)), path)
        return path

    def test_no_errors_plots_drawn_every_table_sorts_and_a_phone_shows_it(self, browser, other):
        from selenium.webdriver.common.by import By

        opened(browser, other)
        assert np.ptp(pixels(browser)) > 200
        plots = browser.find_elements(By.CSS_SELECTOR, "figure.plot .canvas")
        assert len(plots) == len(browser.find_elements(By.CSS_SELECTOR, "figure.plot .bk-Figure"))
        for plot in plots:
            assert (np.ptp(pixels(browser, plot), axis=2) > 60).mean() > 5e-4, "an empty plot"
        for image in browser.find_elements(By.TAG_NAME, "img"):
            assert browser.execute_script("return arguments[0].naturalWidth", image) > 0
            assert image.get_attribute("alt")
        tables = browser.find_elements(By.CSS_SELECTOR, "table.sortable")
        assert tables
        for table in tables:
            for at in range(len(table.find_elements(By.CSS_SELECTOR, "thead th"))):
                up, down = (there_first(sorted_column(browser, table, at)) for _ in range(2))
                assert up == list(reversed(down))
                assert up == sorted(up) or isinstance(up[0], str)
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
        )
        opened(browser, other)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        assert not [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]


def sorted_column(browser, table, at: int) -> list[str]:
    """Click the head of a column; its cells' values afterwards."""
    return browser.execute_script(
        "const [table, at] = arguments;"
        "table.tHead.rows[0].cells[at].querySelector('button').click();"
        "return [...table.tBodies[0].rows].map(r => r.cells[at].dataset.value ?? r.cells[at].textContent.trim())",
        table,
        at,
    )


def there_first(cells: list[str]) -> list[float] | list[str]:
    """The cells of a sorted column, figures as such where all are; what is missing must come last.

    Words are sorted by the numbers in them, so that a leading zero makes no difference.
    """
    there = [cell for cell in cells if cell not in {"", "-"}]
    assert cells[: len(there)] == there
    try:
        return [float(cell) for cell in there]
    except ValueError:
        return [re.sub(r"0+(?=\d)", "", cell) for cell in there]


def colours(browser, names) -> list[tuple[int, int, int]]:
    found = []
    for name in names:
        text = browser.execute_script(
            "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()", name
        ).lstrip("#")
        text = "".join(2 * digit for digit in text) if len(text) == 3 else text
        found.append(tuple(int(text[at : at + 2], 16) for at in (0, 2, 4)))
    return found


def contrast(one, other) -> float:
    def luminance(colour) -> float:
        parts = [value / 255 for value in colour]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)
