from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from blip_fast.capfilt import CapFiltOptions, run_capfilt

VOID = {"meta", "input", "img", "br", "line", "rect"}


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, texts and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.classes: list[set[str]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        named = dict(attrs)
        self.classes.append(set((named.get("class") or "").split()))
        self.addresses += [named[a] or "" for a in ("src", "href", "data") if a in named]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def render(source: Path, output: Path, model: Any, **settings: Any) -> tuple[str, Page]:
    options = CapFiltOptions(**settings)
    text = run_capfilt(source, output, model, model, options).report.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def page(source: Path, tmp_path: Path, stub: Any) -> tuple[str, Page]:
    return render(source, tmp_path / "out", stub())


def test_texts_are_escaped(page: tuple[str, Page], source: Path) -> None:
    text, parsed = page
    assert parsed.tags["script"] == 0
    assert "<script" not in text
    assert (source / "sub/f_hostile.txt").read_text(encoding="utf-8") in parsed.text


def test_the_page_asks_no_other_machine(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert parsed.addresses and all(a.startswith("data:image/jpeg") for a in parsed.addresses)
    assert parsed.tags["link"] == 0
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_picture_has_a_card_with_its_state(page: tuple[str, Page]) -> None:
    _, parsed = page
    cards = [classes - {"card"} for classes in parsed.classes if "card" in classes]
    assert len(cards) == 7 and parsed.tags["img"] == 6
    # In order: good, bad, not a number, blank, broken, none, hostile; all have a kept caption.
    assert cards == [
        {"kept"},
        {"kept", "rejected"},
        {"kept", "failed"},
        {"kept", "failed"},
        {"failed"},
        {"kept"},
        {"kept"},
    ]


def test_failures_are_listed_with_reasons(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert "failed_to_decode" in parsed.text and "d_broken.jpg" in parsed.text
    assert "the web text is empty" in parsed.text
    assert "the filter's score of the web text is not a number" in parsed.text


def test_banner_only_for_untrained_weights(
    page: tuple[str, Page], source: Path, tmp_path: Path, stub: Any
) -> None:
    assert "Untrained weights" not in page[1].text
    _, parsed = render(source, tmp_path / "b", stub(trained=False))
    assert "Untrained weights" in parsed.text


def test_histogram_counts_both_kinds(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert "0.90 to 0.95: 6 synthetic" in parsed.text
    assert "0.90 to 0.95: 2 web" in parsed.text
    assert "0.10 to 0.15: 1 web" in parsed.text


def test_a_large_run_shows_a_spread(source: Path, tmp_path: Path, stub: Any) -> None:
    _, parsed = render(source, tmp_path / "b", stub(), gallery=3)
    assert sum("card" in classes for classes in parsed.classes) == 3
    assert "3 of 7, evenly spread" in parsed.text


def test_nothing_but_failures_is_still_a_page(tmp_path: Path, stub: Any) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.png").write_bytes(b"")
    _, parsed = render(tmp_path / "source", tmp_path / "out", stub())
    assert "0 read, 1 failed" in parsed.text and "none found" in parsed.text
