"""The page of `pyskip serve`, in headless Chromium, against a real server of a tiny model with a profile."""

from __future__ import annotations

import re
from pathlib import Path

from browser import complaints, requests, set_screen
from page import Page, api, letters, shown
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from serving import running

KEY = "a-key-of-ours"
TIMES = "\u00d7"


def test_an_answer_is_the_servers_with_each_token_shaded(page: Page, page_url: str) -> None:
    page.slide(40)
    turn = page.ask()
    (asked,) = page.bodies()
    assert asked["skip"] == 0.4
    whole = api(page_url, "/v1/chat/completions", {**asked, "stream": False})
    assert letters(whole["choices"][0]["message"]["content"]) == shown(turn)
    trace = whole["skip_trace"]
    for span in turn.find_elements(By.CSS_SELECTOR, ".text [data-i]"):
        token = trace[int(str(span.get_attribute("data-i")))]
        share = len(token["skipped"]) / 6
        level = sum(share > bound for bound in (0, 0.1, 0.2, 0.3, 0.4, 0.6))
        assert f"s{level}" in str(span.get_attribute("class")).split()
    assert len({str(s.get_attribute("class")).split()[0] for s in turn.find_elements(By.CSS_SELECTOR, "[data-i]")}) > 1
    figures = turn.find_element(By.CSS_SELECTOR, ".figures").text
    assert f"{whole['usage']['skip_rate']:.1%}".replace("%", " %") in figures
    assert re.search(r"\d tokens/s", figures)
    # the map: in the colour of skipped blocks as many cells as the trace has, each a rectangle of several pixels
    n_skipped = sum(len(token["skipped"]) for token in trace)
    painted = page.js(
        """const canvas = arguments[0].querySelector('.scroller canvas');
        const hex = getComputedStyle(canvas).getPropertyValue('--skipped').match(/[0-9a-f]{2}/g);
        const colour = hex.map((two) => parseInt(two, 16));
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        let n = 0;
        for (let i = 0; i < data.length; i += 4) n += colour.every((value, j) => data[i + j] === value);
        return n;""",
        turn,
    )
    assert painted > 0
    assert painted % n_skipped == 0
    # and in words
    turn.find_element(By.CSS_SELECTOR, ".by-layer summary").click()
    rows = page.until(lambda: turn.find_elements(By.CSS_SELECTOR, ".by-layer tbody tr"))
    for layer, row in enumerate(rows):
        rate = sum(layer in token["skipped"] for token in trace) / len(trace)
        assert row.text == f"{layer} {100 * rate:.1f} %"
    turn.find_element(By.CSS_SELECTOR, ".cursor input").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    said = turn.find_element(By.CSS_SELECTOR, ".readout").text
    assert f"{len(trace[1]['skipped'])} of 6 blocks skipped" in said
    value = turn.find_element(By.CSS_SELECTOR, ".cursor input").get_attribute("aria-valuetext") or ""
    assert value.startswith("Token 1 of")


def test_the_slider_is_the_profiles_curve(page: Page, page_url: str) -> None:
    described = api(page_url, "/pyskip/models")["data"][0]["profile"]
    slider, best = page("#skip"), page("#recommended")
    assert float(str(slider.get_property("max"))) == round(100 * described["curve"][-1]["rate"])
    assert slider.get_property("value") == str(round(100 * described["recommended"]))
    assert "(recommended)" in page("#point").text
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page("#point").text.startswith(f"0.26: perplexity 1.000 {TIMES} dense, at best 1.00 {TIMES} as fast")
    assert slider.get_attribute("aria-valuetext") == page("#point").text
    slider.send_keys(Keys.HOME)
    assert page("#point").text == "off: every block runs"
    page.ask(n_tokens=4)
    slider.send_keys(Keys.END)
    page.ask(n_tokens=4)
    best.click()
    page.ask(n_tokens=4)
    asked = page.bodies()
    assert [a["skip"] for a in asked] == ["off", 0.95, 0.25]
    assert [m["role"] for m in asked[-1]["messages"]] == ["user", "assistant"] * 2 + ["user"]


def test_compare_asks_twice(page: Page, page_url: str) -> None:
    assert "not measured here yet" in page("#rate").text
    page.slide(70)
    turn = page.ask(send="#compare")
    dense, skipped = turn.find_elements(By.CSS_SELECTOR, ".answer")
    asked = page.bodies()
    assert [a["skip"] for a in asked] == ["off", 0.7]
    for answer, body in zip((dense, skipped), asked, strict=True):
        whole = api(page_url, "/v1/chat/completions", {**body, "stream": False})
        assert shown(answer) == letters(whole["choices"][0]["message"]["content"])
    assert shown(dense) != shown(skipped)
    assert not dense.find_elements(By.CSS_SELECTOR, ".map, .s1, .s2, .s3, .s4, .s5, .s6")
    assert skipped.find_elements(By.CSS_SELECTOR, ".map")
    assert abs(dense.rect["y"] - skipped.rect["y"]) < 2
    assert dense.rect["x"] + dense.rect["width"] <= skipped.rect["x"]
    assert "The answers" in turn.find_element(By.CSS_SELECTOR, ".note").text
    assert re.search(rf"[\d.]+ {TIMES} dense$", skipped.find_element(By.CSS_SELECTOR, ".figures").text)
    assert re.search(rf"[\d.]+ {TIMES} dense \([\d.]+, last dense answer here\)", page("#rate").text)
    page.slide(0)
    page("#prompt").send_keys("w3")
    page("#compare").click()
    assert "nothing to compare" in page("#error").text


def test_the_temperature_is_the_models_unless_chosen(page: Page) -> None:
    assert page("#temperature").get_property("value") == ""
    for chosen in ("", "0.5"):
        page.ask(n_tokens=2, temperature=chosen)
    assert [body.get("temperature") for body in page.bodies()] == [None, 0.5]


def test_by_keyboard_alone(page: Page) -> None:
    def focused() -> str:
        return str(page.js("const a = document.activeElement; return a.id || a.className || a.tagName"))

    reached = []
    for _ in range(12):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        reached.append(focused())
        outline = page.js("const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth")
        assert outline not in ("none0px", "none3px"), f"{reached[-1]}: no focus to be seen"
        if reached[-1] == "compare":
            break
    assert reached == ["jump", "model", "new", "SUMMARY", "skip", "recommended", "prompt", "send", "compare"]
    for _ in range(2):  # back to the prompt
        ActionChains(page.browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert focused() == "prompt"
    page.js("document.querySelector('#max-tokens').value = 8")
    line = ActionChains(page.browser).send_keys("w1").key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT)
    line.send_keys("w2", Keys.ENTER).perform()
    page.until(lambda: page.all(".answer.whole") and page.idle())
    assert str(page("#status").get_property("textContent")).startswith("skip 0.25: ")
    assert focused() == "prompt"
    both = ActionChains(page.browser).send_keys("w3").key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL)
    both.perform()
    page.until(lambda: len(page.all(".answer.whole")) == 3 and page.idle())
    assert [a["messages"][-1]["content"] for a in page.bodies()] == ["w1\nw2", "w3", "w3"]


def test_stop(page: Page) -> None:
    page.js("document.querySelector('#max-tokens').value = 4000")
    page("#prompt").send_keys("w4", Keys.ENTER)
    page.until(lambda: page.all(".answer [data-i]"))
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()
    page.until(page.idle)
    figures = page(".figures").text
    assert figures.endswith("stopped")
    assert 0 < int(figures.split()[0]) < 4000
    page.ask("w2", 4)  # the conversation goes on from what had come
    assert [m["role"] for m in page.bodies()[-1]["messages"]] == ["user", "assistant", "user"]


def test_another_model_and_its_own_policies(page: Page) -> None:
    options = page.all("#model option")
    assert [o.text for o in options] == ["fitted", "plain"]
    options[1].click()
    assert page("#skip").get_property("disabled")
    assert not page("#recommended").is_displayed()
    assert "no profile for this model" in page("#point").text
    page.fill("#policy", "static:1,3")
    turn = page.ask()
    (asked,) = page.bodies()
    assert (asked["model"], asked["skip"]) == ("plain", "static:1,3")
    assert "33.3 % of FFN blocks" in turn.find_element(By.CSS_SELECTOR, ".figures").text
    page("#new").click()
    assert not page.all(".turn")
    page.ask(n_tokens=4)
    assert len(page.bodies()[0]["messages"]) == 1


def test_a_pace_is_the_servers_until_a_rate_is_set(page: Page, page_models: tuple[Path, Path]) -> None:
    with running(str(page_models[0]), "--target-tps", "1.5") as server:
        other = Page(page.browser, server.url)
        other.until(lambda: "keeps 1.5 tokens/s" in other("#point").text)
        other.ask(n_tokens=4)
        other.slide(40)
        other.ask(n_tokens=4)
        assert [asked.get("skip") for asked in other.bodies()] == [None, 0.4]
    page.browser.get("about:blank")
    requests(page.browser)


def test_a_refusal_is_one_line_and_loses_nothing(page: Page) -> None:
    page.fill("#policy", "cosine:threshold=many")
    page("#prompt").send_keys("do not lose this", Keys.ENTER)
    page.until(lambda: page("#error").text)
    assert "threshold" in page("#error").text
    assert "\n" not in page("#error").text
    assert page("#prompt").get_property("value") == "do not lose this"
    assert not page.all(".turn")
    assert complaints(page.browser)[0].count("400") == 1  # Chromium itself tells of the status
    page.fill("#policy", "")
    page("#prompt").clear()
    page.ask(n_tokens=4)
    assert not page("#error").is_displayed()


def test_the_key_is_asked_for(browser: Chrome, page_models: tuple[Path, Path]) -> None:
    set_screen(browser, 1100, 800)
    with running(str(page_models[0]), "--api-key", KEY) as server:
        page = Page(browser, server.url)
        page.until(lambda: page("#key-dialog").is_displayed())
        page("#key").send_keys("wrong", Keys.ENTER)
        page.until(lambda: "refused" in page("#key-why").text)
        page("#key").send_keys(KEY, Keys.ENTER)
        page.until(lambda: page("#point").text)
        assert not page("#key-dialog").is_displayed()
        page.ask(n_tokens=4)
        kept = page.js("return [...Object.entries(sessionStorage).flat(), ...Object.keys(localStorage)]")
        assert kept == ["pyskip-api-key", KEY]
        assert KEY not in browser.current_url + browser.page_source
        page.js("sessionStorage.clear()")
        page("#prompt").send_keys("w1", Keys.ENTER)
        page.until(lambda: page("#key-dialog").is_displayed())
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        page.until(lambda: "API key" in page("#error").text)
        assert page("#prompt").get_property("value") == "w1"
        assert "wants an API key" in str(page("#key-why").get_property("textContent"))
    page("#prompt").send_keys(Keys.ENTER)
    page.until(lambda: "the server does not answer" in page("#error").text)
    browser.get("about:blank")
    complaints(browser), requests(browser)
