"""Photograph the report of a phantom's run for the documentation: light, dark, and on a phone.

    python docs/draw_report.py RUN

Needs Chromium and its driver, and the package selenium.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver

from secfl.report.facts import read_run
from secfl.report.page import run_page, write_page

FIGURES = Path(__file__).with_name("figures")
VIEWS = {"light": (1200, 1500, "light"), "dark": (1200, 1500, "dark"), "phone": (390, 1400, "light")}


def main(run: Path) -> None:
    """Write the pictures beside this file."""
    facts = read_run(run)
    if not facts.phantom:
        sys.exit(f"{run}: expected a run on a phantom; pictures in the documentation show nobody")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_page(run_page(facts), page)
        browser = webdriver.Chrome(options=options, service=service)
        try:
            for name, (width, height, scheme) in VIEWS.items():
                metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                feature = {"name": "prefers-color-scheme", "value": scheme}
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                browser.get(page.as_uri())
                time.sleep(2)  # the plots are drawn after the page has loaded
                png = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
                (FIGURES / f"report-{name}.png").write_bytes(base64.b64decode(png))
        finally:
            browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
