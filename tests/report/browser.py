"""A page in headless Chromium: what it logs, what it requests, and the frames of its videos."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


def launch_browser(stack: Any) -> Any:
    """Chromium; skips the test where Playwright or Chromium is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[dev]'")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    playwright = stack.enter_context(sync_api.sync_playwright())
    browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
    stack.callback(browser.close)
    return browser


def shown(values: NDArray[Any]) -> list[str]:
    """Numbers as the page shows those at a cursor: five significant digits."""
    return [f"{float(f'{value:.5g}'):.15g}" for value in values.tolist()]


class OpenPage:
    """A page that was opened from a file. `faults`: messages in the console, errors and requests to a network."""

    def __init__(self, context: Any, path: Path) -> None:
        self.page, self.faults = context.new_page(), list[str]()
        self.page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._check_request)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def _check_request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "blob:")):
            self.faults.append(f"request: {request.url}")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def step(self) -> int:
        """The step of the cursor of the first player."""
        return int(self.text(".step").split()[1])

    def frame(self, camera: int = 0) -> list[int]:
        """The color in the middle of the frame that a video of the first player shows, once it has moved there."""
        return self.page.evaluate(
            """async (camera) => {
                const video = document.querySelectorAll('.player video')[camera];
                while (video.seeking || video.readyState < 2) await new Promise((done) => setTimeout(done, 20));
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                const canvas = document.createElement('canvas');
                [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
                const context = canvas.getContext('2d');
                context.drawImage(video, 0, 0);
                return [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
            }""",
            camera,
        )

    def legend(self, chart: int) -> list[str]:
        """The values at the cursor of a chart of curves, without the step."""
        return self.page.locator(".episode .u-legend").nth(chart).locator(".u-value").all_inner_texts()[1:]


@contextmanager
def open_page(browser: Any, path: Path, viewport: dict[str, int] = DESKTOP, **settings: Any) -> Iterator[OpenPage]:
    """The page at `path`; afterwards nothing may have been logged, failed or requested."""
    context = browser.new_context(viewport=viewport, **settings)
    try:
        opened = OpenPage(context, path)
        yield opened
        assert opened.faults == []
    finally:
        context.close()
