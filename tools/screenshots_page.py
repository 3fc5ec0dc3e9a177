"""Pictures of the page of `pyskip serve` on the demo model, for the docs: `make screenshots`."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))
import browser as chromium
from page import Page, serve, stop

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PROMPT = "Why is the sky blue?"
N_TOKENS = 80


def shoot(page: Page, name: str, width: int, height: int, *, dark: bool = False, end: bool = False) -> None:
    """The window, at the top of the page or at its end, once all of it is painted."""
    chromium.set_screen(page.browser, width, height, dark=dark)
    page.js("document.activeElement.blur(); scrollTo(0, arguments[0])", 100_000 if end else 0)
    page.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    png = page.browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / name).write_bytes(base64.b64decode(png["data"]))


def main() -> int:
    if not (chromium.CHROMIUM and chromium.DRIVER):
        sys.exit("screenshots: no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    if os.getloadavg()[0] > 1:
        print(
            f"screenshots: the load is {os.getloadavg()[0]:.1f}: the rates in the pictures will be off", file=sys.stderr
        )
    server, url = serve("demo")
    try:
        with chromium.open_browser() as browser:
            browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            chromium.set_screen(browser, 1000, 760)
            page = Page(browser, url)
            page.until(lambda: page("#point").text)
            page.ask(PROMPT, N_TOKENS, seconds=300)
            page.js(
                "const token = document.querySelector('.cursor input'); token.value = 37;"
                "token.dispatchEvent(new Event('input'))"
            )
            shoot(page, "page-answer.png", 1000, 840)
            shoot(page, "page-dark.png", 1000, 840, dark=True)
            shoot(page, "page-phone.png", 360, 740, end=True)
            page("#new").click()
            page.ask(PROMPT, N_TOKENS, send="#compare", seconds=300)
            shoot(page, "page-compare.png", 1000, 900)
    finally:
        stop(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
