"""Headless Chromium for the tests and the pictures of the page, and what it saw."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

__all__ = ["CHROMIUM", "DRIVER", "complaints", "open_browser", "requests", "set_screen"]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")  # Debian: chromium, chromium-driver
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root may have none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--disable-lcd-text",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves the machine
)


@contextmanager
def open_browser() -> Iterator[Chrome]:
    assert CHROMIUM is not None
    assert DRIVER is not None
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=Service(DRIVER, env={**os.environ, "LANGUAGE": "en"}))
    try:
        browser.set_script_timeout(30)
        yield browser
    finally:
        browser.quit()


def set_screen(browser: Chrome, width: int, height: int, *, dark: bool = False) -> None:
    """A desktop's, or a phone's if it is narrow."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _log(browser: Chrome, kind: str) -> list[dict[str, Any]]:
    """Entries since the last look."""
    return list(browser.get_log(kind))  # type: ignore[no-untyped-call]


def complaints(browser: Chrome) -> list[str]:
    """What the console said since the last look: errors, warnings, refusals of the Content-Security-Policy."""
    return [f"{entry['level']} {entry['message']}" for entry in _log(browser, "browser")]


def requests(browser: Chrome) -> list[dict[str, Any]]:
    """What pages asked for since the last look: url, method, postData if there was a body."""
    messages = (json.loads(entry["message"])["message"] for entry in _log(browser, "performance"))
    return [m["params"]["request"] for m in messages if m["method"] == "Network.requestWillBeSent"]
