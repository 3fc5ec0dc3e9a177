"""What the page draws: Markdown of a model that may mean harm, contrasts, phones, names of controls."""

from __future__ import annotations

import re
import urllib.request

import pytest
from browser import set_screen
from page import Page
from selenium.webdriver import Chrome

RENDER = """
const [text, done] = [arguments[0], arguments[1]];
const {blocks, element} = await import(new URL('markdown.js', document.querySelector('script[type=module]').src));
const root = document.createElement('div');
const leaf = (parent, start, end) => parent.append(text.slice(start, end));
const began = performance.now();
root.append(...blocks(text).map((block) => element(text, block, leaf)));
const took = performance.now() - began;
"""
TIME = f"{RENDER} return took;"

MARKDOWN = {
    "a **b *c*** d": "<p>a <strong>b *c</strong>* d</p>",
    "a **b** *c* `d*e*`": "<p>a <strong>b</strong> <em>c</em> <code>d*e*</code></p>",
    "2 * 3 * 4, *x": "<p>2 * 3 * 4, *x</p>",
    "# T\ntext\nmore\n\nnext": '<p class="heading">T</p><p>text\nmore</p><p>next</p>',
    "- a\n- b\n\n3. c": '<ul><li>a</li><li>b</li></ul><ol><li value="3">c</li></ol>',
    "```html\n<b>\n\n- x\n```\nafter": '<pre tabindex="0"><code>&lt;b&gt;\n\n- x\n</code></pre><p>after</p>',
    "~~~\nopen": '<pre tabindex="0"><code>open</code></pre>',
    "<img src=x onerror=a()> [l](javascript:a())": "<p>&lt;img src=x onerror=a()&gt; [l](javascript:a())</p>",
    "`": "<p>`</p>",
    "**": "<p>**</p>",
    "****": "<p>****</p>",
    "-": "<ul><li></li></ul>",
    "": "",
}


def test_markdown(page: Page) -> None:
    for text, html in MARKDOWN.items():
        assert page.js(f"{RENDER} return root.innerHTML;", text) == html, text


def test_markdown_of_a_hostile_model_takes_no_time(page: Page) -> None:
    """What is quadratic takes many seconds. The better of two, for a busy machine."""
    for piece in ("*a ", "**a ", "`", "*a **b ", "- ", "```\n", "\n", "> 1. **`*"):
        assert min(page.js(TIME, piece * 20000) for _ in range(2)) < 4000, piece


def test_an_answer_painted_on_the_way_is_the_answer_painted_at_once(page: Page) -> None:
    text = "Say *a*\n- \n-b\n\n1. x\n2. **y\n\n z** `q\n```\ncode\n``` \n```\n# head\n#\npara 日本 end"
    same = page.js(
        """const {Answer} = await import(new URL('answer.js', document.querySelector('script[type=module]').src));
        const model = {id: 'm', n_layer: 4, skippable: [0, 1]};
        const slow = new Answer(model, 'a'), fast = new Answer(model, 'b');
        [...arguments[0]].forEach((text, i) => {
          const chunk = {choices: [{delta: {content: text}}], skip_trace: [{text, skipped: [i % 4]}]};
          slow.add(chunk);
          slow.paint();
          fast.add(chunk);
        });
        fast.paint();
        return [slow.body.innerHTML === fast.body.innerHTML, fast.body.textContent];""",
        text,
    )
    assert same[0]
    assert "日本" in same[1]


CONTRASTS = """
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = {};
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest('button:disabled, noscript')) continue;
  const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(behind(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found[`${node.tagName} ${node.className}`] = Math.min(ratio, found[`${node.tagName} ${node.className}`] ?? 99);
}
const [skipped, ran] = ['.skipped', '.ran'].map((cell) => luminance(behind(document.querySelector(cell))));
return [found, (Math.max(skipped, ran) + 0.05) / (Math.min(skipped, ran) + 0.05)];
"""


def test_themes_and_phones(page: Page, browser: Chrome) -> None:
    """Readable in both themes, the shades of all levels, too; on a phone nothing is cut off."""
    page.slide(60)
    page.js("document.querySelector('.more').open = true")
    page.ask("a long word: " + "w" * 300 + " w10", 60, send="#compare")  # to which it has more to say
    page.js("document.querySelector('#intro').hidden = false")
    page.bodies()
    for width, dark in ((1100, False), (1100, True), (360, False), (360, True)):
        set_screen(browser, width, 740, dark=dark)
        page.until(lambda width=width: page.js("return innerWidth") == width)  # type: ignore[misc]
        contrasts, of_cells = page.js(CONTRASTS)
        assert of_cells >= 3
        assert len(contrasts) > 15
        assert {what: ratio for what, ratio in contrasts.items() if ratio < 4.5} == {}
        assert {f"SPAN s{level}" for level in range(7)} <= set(contrasts)
        assert page.js("return document.documentElement.scrollWidth") <= width
        cut_off = page.js(
            """return [...document.querySelectorAll('body *')].filter((node) => {
              const box = node.getBoundingClientRect();
              const aside = node.closest('.scroller, .unseen, .jump, pre');
              return !aside && box.width && node.checkVisibility() && box.right > innerWidth + 1;
            }).map((node) => node.outerHTML.slice(0, 80))"""
        )
        assert cut_off == []
    dense, skipped = page.all(".answer")
    assert skipped.rect["y"] > dense.rect["y"] + dense.rect["height"] - 1
    ink = page.js("return getComputedStyle(document.body).color")
    set_screen(browser, 360, 740)
    assert page.js("return getComputedStyle(document.body).color") != ink


@pytest.mark.parametrize("width", [1100, 360])
def test_every_control_has_a_name(page: Page, browser: Chrome, width: int) -> None:
    page.js("document.querySelector('.more').open = true")
    page.slide(50)
    page.ask(send="#compare")
    set_screen(browser, width, 740)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {
        "button",
        "slider",
        "textbox",
        "combobox",
        "spinbutton",
        "image",
        "img",
        "link",
        "article",
        "main",
        "status",
    }
    nodes = [n for n in tree if not n["ignored"] and n["role"]["value"] in roles]
    names = [(n["role"]["value"], n.get("name", {}).get("value", "").strip()) for n in nodes]
    assert [role for role, name in names if not name and role != "status"] == []
    assert len(names) == len(set(names)), "two controls have one name"
    assert {role for role, _ in names} >= {"button", "slider", "textbox", "combobox", "spinbutton", "article", "main"}
    live = page.js("return [...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map((n) => n.id)")
    assert sorted(live) == ["error", "status"]  # nothing is read out token by token


def test_the_page_is_served_with_a_policy(page_url: str) -> None:
    with urllib.request.urlopen(page_url, timeout=30) as answer:
        policy, html = str(answer.headers["Content-Security-Policy"]), answer.read().decode()
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(
        policy.split("; ")
    )
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-cache"
    files = set(re.findall(r'(?:src|href)="(page/[^"]+)"', html))
    assert {f.rpartition(".")[2] for f in files} == {"css", "js", "svg"}
    kinds = {"js": "javascript", "css": "css", "svg": "svg"}
    folder = next(iter(files)).rpartition("/")[0]  # named by what is in it: a browser may keep it
    for file in (*files, f"{folder}/map.js"):  # which page.js imports
        with urllib.request.urlopen(f"{page_url}/{file}", timeout=30) as answer:
            assert kinds[file.rpartition(".")[2]] in answer.headers["Content-Type"]
            assert "immutable" in answer.headers["Cache-Control"]
