from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from runs import picture, text, write_shards

from blip_fast.capfilt import CapFiltOptions, run_capfilt
from blip_fast.capfilt import gallery as gallery_of
from blip_fast.capfilt import report as report_of
from blip_fast.capfilt.labels import Labels
from blip_fast.capfilt.report import render_report, write_report
from blip_fast.capfilt.rows import Row
from blip_fast.capfilt.summary import TOTALS
from blip_fast.data.pages import inline_json, page_script
from blip_fast.images import Status

VOID = {"meta", "input", "img", "br", "line", "rect", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, texts, addresses and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open
        self.values = json.loads(self.scripts[0])
        self.rows = {row["k"]: row for row in self.values["rows"]}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        named = dict(attrs)
        assert not any(name.startswith("on") for name in named), named
        self.addresses += [named[a] or "" for a in ("src", "href", "data") if a in named]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def render(source: Path, output: Path, model: Any, **settings: Any) -> tuple[str, Page]:
    options = CapFiltOptions(**settings)
    page = run_capfilt(source, output, model, model, options).report.read_text(encoding="utf-8")
    return page, Page(page)


@pytest.fixture
def page(source: Path, tmp_path: Path, stub: Any) -> tuple[str, Page]:
    return render(source, tmp_path / "out", stub())


def test_no_text_becomes_markup(page: tuple[str, Page], source: Path) -> None:
    raw, parsed = page
    said = (source / "sub/f_hostile.txt").read_text(encoding="utf-8")
    assert parsed.rows["sub/f_hostile.png"]["t"][0]["x"] == said.strip()
    assert "<script>alert" in said and "<script>alert" not in raw
    assert parsed.tags["script"] == 2  # the values and the page's own


@pytest.mark.parametrize(
    "hostile", ["</script><b>", "<!--<script>", "]]>", "&lt;", "\u2028\u2029", "\\u003c", "\x00"]
)
def test_values_survive_and_cannot_end_their_tag(hostile: str) -> None:
    written = str(inline_json({"x": hostile}))
    assert json.loads(written) == {"x": hostile}
    assert not set(written) & set("<>&\u2028\u2029")


def test_hostile_texts_everywhere(tmp_path: Path) -> None:
    bad = "</script></style><img src=x onerror=alert(1)>"
    row = picture(0, text("web", bad, 0.1), error_message=bad)
    failed = Row(bad, bad, Status.TOO_LARGE, error_message=bad)
    run = write_shards(tmp_path, [[row, failed]], source=bad)
    raw = render_report(run)
    assert "<img src=x" not in raw and Page(raw).tags["img"] == 0
    assert bad in Page(raw).text  # the source's name and the reason


def test_only_its_own_script_may_run(page: tuple[str, Page]) -> None:
    raw, parsed = page
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', raw)
    policy = policy.replace("&#39;", "'")
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|\beval\b", parsed.scripts[1])


def test_a_script_that_would_end_early_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.js").write_text("let x = '</script>'", encoding="utf-8")
    with pytest.raises(ValueError, match="would end it early"):
        page_script(tmp_path / "x.js")


def test_the_page_asks_no_other_machine(page: tuple[str, Page]) -> None:
    raw, parsed = page
    assert parsed.addresses and all(address.startswith("#") for address in parsed.addresses)
    assert parsed.tags["link"] == 0
    assert not re.search(r"url\(|@import|https?://", raw)


def test_every_picture_is_a_card_with_its_decisions(page: tuple[str, Page]) -> None:
    _, parsed = page
    decisions = {
        key: [("web" if text.get("w") else "synthetic", text["d"]) for text in row.get("t", ())]
        for key, row in parsed.rows.items()
    }
    written = ("synthetic", "kept")
    assert decisions == {
        "a_good.png": [("web", "kept"), written],
        "b_bad.png": [("web", "rejected"), written],
        "c_nan.png": [("web", "failed_score"), written],
        "d_blank.png": [("web", "empty_text"), written],
        "d_broken.jpg": [],
        "e_none.png": [written],
        "sub/f_hostile.png": [("web", "kept"), written],
    }
    assert parsed.rows["d_broken.jpg"]["s"] == "failed_to_decode"
    jpeg = base64.b64decode(parsed.rows["a_good.png"]["j"])
    assert jpeg.startswith(b"\xff\xd8\xff") and len(jpeg) < 20_000


def test_failures_are_listed_by_reason(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert "failed_to_decode" in parsed.text and "d_broken.jpg" in parsed.text
    assert "the web text is empty" in parsed.text
    assert "the web text has no score, or none that is a number" in parsed.text


def test_reasons_that_differ_in_numbers_and_names_are_one(tmp_path: Path) -> None:
    rows = [
        Row(f"k{n}", "", Status.TOO_LARGE, error_message=f"{n}00 pixels in 'x{n}.jpg'")
        for n in range(7)
    ]
    said = " ".join(Page(render_report(write_shards(tmp_path, [rows]))).text.split())
    assert re.search("too_large ?7 ?# pixels in … ?k0, k1, k2", said)


def test_banner_only_for_untrained_weights(
    page: tuple[str, Page], source: Path, tmp_path: Path, stub: Any
) -> None:
    assert "Untrained weights" not in page[1].text
    _, parsed = render(source, tmp_path / "b", stub(trained=False))
    assert "Untrained weights" in parsed.text


def test_histograms_before_and_after(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert "0.9 to 0.925: 6 synthetic, 6 kept" in parsed.text
    assert "0.9 to 0.925: 2 web, 2 kept" in parsed.text
    assert "0.1 to 0.125: 1 web, 0 kept" in parsed.text
    assert "ITC cosine, web" in parsed.text


def test_totals_as_in_the_paper(page: tuple[str, Page]) -> None:
    said = " ".join(page[1].text.split())
    assert "60.0% dropped" in said and "2 kept of 5, 2 failed" in said  # web
    assert "0.0% dropped" in said and "6 kept of 6" in said  # synthetic
    assert "6 read, 1 failed" in said


def test_labels_add_precision_and_recall(tmp_path: Path) -> None:
    rows = [picture(n, text("web", f"t{n}", n / 10)) for n in range(10)]
    run = write_shards(tmp_path, [rows])
    labels = Labels("people")
    for n in range(10):
        labels.add(f"{n:09d}", "web", None, n in (3, 6, 7, 8))
    said = " ".join(Page(render_report(run, labels)).text.split())
    assert "Precision60.0%" in said and "Recall75.0%" in said  # 5 kept, 3 of them true, of 4
    assert Page(render_report(run, labels)).rows["000000003"]["t"][0]["r"] == 1
    assert "Precision" not in Page(render_report(run)).text


def test_a_large_run_shows_a_spread_with_the_extremes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [[picture(n, text("web", "x", 0.4)) for n in range(i, i + 50)] for i in (0, 50, 100)]
    shards[1][33] = picture(83, text("web", "worst", 0.01))
    shards[2][7] = picture(107, text("web", "best", 0.99))
    shards[0][3] = picture(3, text("web", "x", 0.4), thumbnail=b"jpeg")
    run = write_shards(tmp_path, shards)
    assert len(Page(render_report(run)).rows) == 150
    monkeypatch.setattr(gallery_of, "MOST", 20)
    monkeypatch.setattr(gallery_of, "_EXTREMES", 2)
    monkeypatch.setattr(gallery_of.choose, "__defaults__", (20,))
    monkeypatch.setattr(gallery_of.Extremes.__init__, "__defaults__", (2,))
    parsed = Page(render_report(run))
    assert {"000000083", "000000107", "000000003"} <= set(parsed.rows)
    assert 15 <= len(parsed.rows) <= 20 and list(parsed.rows) == sorted(parsed.rows)
    assert "150 read" in parsed.text


def test_of_very_many_shards_some_are_read_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [[picture(n, text("web", "x", 0.9))] for n in range(12)]
    run = write_shards(tmp_path, shards, gallery=2)
    monkeypatch.setattr(report_of, "_MOST_SHARDS", 4)
    parsed = Page(render_report(run))
    assert "12 kept of 12" in " ".join(parsed.text.split()) and "of 12 shards" in parsed.text
    assert 4 <= len(parsed.rows) <= 6


def test_a_run_without_totals_is_still_a_page(tmp_path: Path) -> None:
    run = write_shards(tmp_path, [[picture(0, text("web", "x", 0.9))]])
    (run / TOTALS).unlink()
    assert write_report(run).read_text(encoding="utf-8").count("1 kept of 1") == 1


def test_nothing_but_failures_is_still_a_page(tmp_path: Path, stub: Any) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.png").write_bytes(b"")
    _, parsed = render(tmp_path / "source", tmp_path / "out", stub())
    assert "0 read, 1 failed" in parsed.text and "none found" in parsed.text


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished shard of CapFilt"):
        write_report(tmp_path)
