"""The report in a real browser: what it shows, how it is filtered, and that it stays quick."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Browser
from runs import picture, text, thumbnail, write_shards

from blip_fast.capfilt.labels import Labels
from blip_fast.capfilt.report import write_report
from blip_fast.capfilt.rows import Row
from blip_fast.images import Status

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'"
LONG = "a very long text " * 40
WIDE = "w" * 300


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    jpeg = thumbnail()
    rows = [
        picture(0, text("web", HOSTILE, 0.1), text("synthetic", "a cat", 0.9), thumbnail=jpeg),
        picture(1, text("web", "a dog", 0.8), text("synthetic", "a cow", 0.45), thumbnail=jpeg),
        picture(2, text("web", LONG, 0.3, truncated=True), text("synthetic", "a dog", 0.7)),
        picture(3, text("web", WIDE, 0.55), text("synthetic", "a cat", 0.2, degenerate=True)),
        Row("broken.jpg", "/x", Status.FAILED_TO_DECODE, error_message="half of it is missing"),
    ]
    labels = Labels("/a/" + WIDE + ".json")
    labels.add("000000003", "web", None, False)
    labels.add("000000001", "web", None, True)
    folder = write_shards(tmp_path_factory.mktemp("run"), [rows[:3], rows[3:]], "/data/" + WIDE)
    return write_report(folder, labels)


KEYS = "[...document.querySelectorAll('.card .name')].map((name) => name.textContent)"


def keys(browser: Browser) -> list[str]:
    return [key[-1] if key[0] == "0" else key for key in browser.run(KEYS)]


def choose(browser: Browser, **fields: str) -> list[str]:
    """Fill in the form as a person does, from its beginning; the keys that are left, in order."""
    for name, value in {"web": "", "synthetic": "", "only": "", "sort": "", "search": ""}.items():
        value = fields.get(name, value)
        if name in ("web", "synthetic"):
            browser.run(f"document.querySelector('[name={name}][value=\"{value}\"]').click()")
            continue
        browser.run(
            f"(() => {{ const field = document.querySelector('[name={name}]');"
            f"field.value = {value!r};"
            "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
    return keys(browser)


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_shows_pictures(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark)
    assert browser.errors == [] and browser.requests == []
    assert browser.run("document.scrollingElement.scrollWidth") == width
    assert browser.beyond() == []
    assert keys(browser) == ["0", "1", "2", "3", "broken.jpg"]
    sizes = "[...document.querySelectorAll('.card img')].map((image) => image.naturalWidth)"
    browser.run("Promise.all([...document.images].map((image) => image.decode()))")
    assert browser.run(sizes) == [64, 64]
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in back[4:-1].split(",")) / 3
    assert brightness < 60 if dark else brightness > 200


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_what_is_behind_them(browser: Browser, page: Path, dark: bool) -> None:
    """WCAG's contrast of 4.5 for every piece of text on the page."""
    browser.open(page, 1280, dark=dark)
    assert browser.run(CONTRAST) == []


def test_hostile_texts_are_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.title").startswith("CapFilt")
    assert browser.run("document.querySelector('.card .text').textContent") == HOSTILE


def test_filters(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert choose(browser, web="kept") == ["1", "3"]
    assert choose(browser, web="rejected", synthetic="kept") == ["0", "2"]
    assert choose(browser, only="failed") == ["broken.jpg"]
    assert choose(browser, only="truncated") == ["2"]
    assert choose(browser, only="degenerate") == ["3"]
    assert choose(browser, only="wrong-kept") == ["3"]
    assert choose(browser, only="wrong-rejected") == []
    assert "No picture is like that" in browser.run("document.getElementById('gallery').innerText")
    assert choose(browser, search="CAT") == ["0", "3"]
    assert choose(browser, search="dog a") == ["1", "2"]
    assert browser.run("document.getElementById('found').textContent") == "2 of 5 pictures"
    browser.run("document.querySelector('#controls [type=reset]').click()")
    browser.run("new Promise((done) => setTimeout(done))")
    assert len(keys(browser)) == 5


def test_orders(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert choose(browser, sort="web-worst") == ["0", "2", "3", "1", "broken.jpg"]
    assert choose(browser, sort="web-best") == ["1", "3", "2", "0", "broken.jpg"]
    assert choose(browser, sort="synthetic-worst") == ["3", "1", "2", "0", "broken.jpg"]
    assert choose(browser, sort="near")[:2] in (["1", "3"], ["3", "1"])
    assert choose(browser, sort="key")[-1] == "broken.jpg"


def test_it_is_used_by_keys_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('[name=web]').focus()")
    browser.press("ArrowRight", 39)
    assert keys(browser) == ["1", "3"]
    browser.run("document.getElementById('slider').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run("document.getElementById('at').textContent") == "0.51"
    browser.press("End", 35)
    assert browser.run("document.querySelector('[data-line=web]').textContent") == "0.0%"
    browser.run("document.querySelector('[name=search]').focus()")
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.type") == "reset"


def test_every_control_has_a_name(browser: Browser, page: Path) -> None:
    browser.open(page)
    nameless = (
        "[...document.querySelectorAll('input, select, button')].filter((control) =>"
        "!control.labels?.length && !control.textContent.trim() && !control.ariaLabel).length"
    )
    assert browser.run(nameless) == 0
    assert browser.run("document.querySelectorAll('img:not([alt])').length") == 0


def test_a_long_text_is_folded(browser: Browser, page: Path) -> None:
    browser.open(page)
    height = "document.querySelectorAll('.card')[2].querySelector('.text').offsetHeight"
    folded = browser.run(height)
    browser.run("document.querySelector('.more').click()")
    assert browser.run(height) > 1.5 * folded
    assert browser.run("document.querySelector('.more').ariaExpanded") == "true"


def test_ten_thousand_pictures(browser: Browser, tmp_path: Path) -> None:
    """What is in the document does not grow with the run, and no step takes a second."""
    jpeg = thumbnail(size=(224, 168))
    rows = [
        picture(
            n,
            text("web", f"text {n} about a thing or another", n % 97 / 97),
            text("synthetic", f"a picture of thing {n}", n % 89 / 89),
            thumbnail=jpeg if n % 50 == 0 else None,
        )
        for n in range(10_000)
    ]
    page = write_report(write_shards(tmp_path, [rows]))
    assert page.stat().st_size < 8_000_000
    for width in (390, 768, 1280):
        browser.open(page, width)
        assert browser.run("document.scrollingElement.scrollWidth") == width
        assert browser.beyond() == []
    assert browser.run("document.getElementById('found').textContent") == "10,000 pictures"
    assert browser.run("document.getElementsByTagName('*').length") < 4_000
    longest = browser.run(LONGEST)
    assert browser.run("document.getElementById('found').textContent") != "10,000 pictures"
    assert longest < 1000, f"a step took {longest} ms"
    assert browser.errors == []


# The longest of some steps, in milliseconds, until they are on the screen; the best of three.
LONGEST = """(() => {
  const form = document.getElementById("controls");
  const steps = {
    sort: (n) => { form.sort.value = ["near", "web-worst", "key"][n]; },
    search: (n) => { form.search.value = "thing " + n; },
    web: (n) => { form.web[[1, 2, 1][n]].checked = true; },
  };
  const took = Object.values(steps).map((step) => Math.min(...[0, 1, 2].map((n) => {
    const start = performance.now();
    step(n);
    form.dispatchEvent(new Event("input", {bubbles: true}));
    document.body.getBoundingClientRect();
    return performance.now() - start;
  })));
  return Math.max(...took);
})()"""

# Elements whose text has less contrast than 4.5 to the nearest background that is not clear.
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const part = color[i] / 255;
    return sum + weight * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  }, 0);
  const faint = [];
  for (const node of document.querySelectorAll("main *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || node.closest("svg, noscript, button:disabled") || !node.offsetParent) continue;
    let behind = node;
    while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] < 255) {
      behind = behind.parentElement;
    }
    const pair = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
    const [a, b] = pair.map((color) => light(rgb(color)) + 0.05);
    const contrast = Math.max(a, b) / Math.min(a, b);
    if (contrast < 4.5) faint.push(`${node.className} ${node.textContent}: ${contrast}`);
  }
  return faint;
})()"""
