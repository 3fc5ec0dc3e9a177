"""The page of `pyskip serve` as the tests use it: a server, and a browser that shows the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from browser import requests
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

__all__ = ["Page", "api", "letters", "serve", "shown", "stop"]

T = TypeVar("T")


def serve(*args: str) -> tuple[subprocess.Popen[str], str]:
    """A server of its own process, and where it is."""
    command = [sys.executable, "-m", "pyskip", "serve", *args, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    watch = threading.Timer(300, server.kill)
    watch.start()
    lines = []
    for line in server.stderr:
        lines.append(line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            watch.cancel()
            return server, found[0]
    watch.cancel()
    server.communicate()
    pytest.fail("".join(lines))


def stop(server: subprocess.Popen[str]) -> None:
    server.terminate()
    server.communicate(timeout=30)


class Page:
    """Loaded anew."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser, self.url = browser, url
        self.asked: list[dict[str, Any]] = []  # requests that were looked at
        browser.get(url)

    def __call__(self, css: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def js(self, script: str, *args: Any) -> Any:
        return self.browser.execute_script(script, *args)

    def until(self, seen: Callable[[], T], seconds: float = 30.0) -> T:
        end = time.monotonic() + seconds
        while not (value := seen()):
            assert time.monotonic() < end, f"the page shows:\n{self('body').text}"
            time.sleep(0.03)
        return value

    def idle(self) -> bool:
        return not self("#stop").is_displayed()

    def fill(self, css: str, text: str) -> None:
        """Of the settings, too."""
        self.js("document.querySelector('.more').open = true")
        self(css).clear()
        self(css).send_keys(text)

    def ask(
        self,
        text: str = "w1 w2",
        n_tokens: int = 24,
        *,
        send: str = "#send",
        seconds: float = 30.0,
        temperature: str = "0",
    ) -> WebElement:
        """Send and wait for the answer. Returns the turn."""
        self.js("document.querySelector('#max-tokens').value = arguments[0]", n_tokens)
        self.js("document.querySelector('#temperature').value = arguments[0]", temperature)
        n_turns = len(self.all(".turn"))
        self("#prompt").send_keys(text)
        self(send).click()
        self.until(lambda: len(self.all(".turn")) > n_turns and self.idle(), seconds)
        return self.all(".turn")[-1]

    def bodies(self) -> list[dict[str, Any]]:
        """Of the chat completions that the page asked for since the last look."""
        asked = requests(self.browser)
        self.asked += asked
        return [json.loads(a["postData"]) for a in asked if a["url"].endswith("/v1/chat/completions")]

    def slide(self, stop: int) -> None:
        self.js(
            "const s = document.querySelector('#skip'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            stop,
        )


def api(url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def letters(text: str) -> str:
    """What Markdown leaves alone."""
    return re.sub("[^A-Za-z]", "", text)


def shown(answer: WebElement) -> str:
    return letters(str(answer.find_element(By.CSS_SELECTOR, ".text").get_property("textContent")))
