"""The pages of `check` and `search` in a real browser, as wide as a telephone, a tablet, a desk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from chromium import Browser
from PIL import Image

from blip_fast.cli import main

LONG = "a_name_without_a_blank_" * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in a folder with a long name: two alike, two equal, one broken."""
    folder = tmp_path_factory.mktemp("pages") / LONG
    folder.mkdir()
    picture = Image.linear_gradient("L").rotate(30).convert("RGB")
    picture.save(folder / "one.png")
    picture.resize((300, 200)).save(folder / f"{LONG}.jpg")
    shutil.copy(folder / "one.png", folder / "again.png")
    Image.radial_gradient("L").save(folder / "other.png")
    (folder / f"broken-{LONG}.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder


@pytest.fixture(scope="module")
def pages(folder: Path, browser: Browser) -> dict[str, Path]:
    """`browser` is asked for first: without one there is nothing to make pages for."""
    base = folder.parent
    pages = {name: base / f"{name}.html" for name in ("check", "text", "image")}
    assert main(["check", str(folder), "--output", str(pages["check"])]) == 1
    assert main(["embed", str(folder), "--model", "scenes", "--output", str(base / "i.npy")]) == 0
    for name, query in (("text", f"a red {LONG}"), ("image", str(folder / "one.png"))):
        assert main(["search", str(base / "i.npy"), query, "--html", str(pages[name])]) == 0
    return pages


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["check", "text", "image"])
def test_nothing_reaches_out_of_the_window(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool, width: int
) -> None:
    browser.open(pages[name], width, dark=dark)
    assert browser.errors == [] and browser.requests == []
    assert browser.run("document.scrollingElement.scrollWidth") == width
    assert browser.beyond() == []
    images = "[...document.images].map((image) => (image.loading = 'eager', image.decode()))"
    browser.run(f"Promise.all({images}).then(() => 0)")
    assert browser.run("document.images.length") >= 4
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in back[4:-1].split(",")) / 3
    assert brightness < 60 if dark else brightness > 200


def test_what_reaches_out_is_found(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<body style='margin: 0'><div style='width: 9000px'>wide</div>"
        "<div style='overflow-x: auto'><p style='width: 9000px'>scrolls</p></div></body>"
    )
    browser.open(page, 1280)
    assert browser.beyond() == ["DIV : wide"]
