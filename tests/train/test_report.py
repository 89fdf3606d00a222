"""The page of a run: what it shows, of damaged logs too, and that it needs no other machine."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip_fast.train.curves import HEIGHT, MOST_POINTS, WIDTH, curve, smoothed
from blip_fast.train.recipe import build_recipe
from blip_fast.train.report import SampleCaption, read_log, render_report
from blip_fast.train.vigil import Seen
from blip_fast.train.watch import Watch

VOID = {"meta", "img", "br", "line", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest; collects addresses, titles and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "h3" in self.open:
            self.headings.append(data.strip())
        if self.open and self.open[-1] == "title":
            self.titles.append(data.strip())


def line(step: int, **values: Any) -> dict[str, Any]:
    return {
        "step": step, "epoch": step // 100, "loss": 9 - step / 100, "loss_itc": 5 - step / 100,
        "loss_lm": 4.0, "lr": 1e-4, "grad_norm": 2.0, "images_per_second": 20.0 + step, "mfu": 0.25,
        "peak_memory_bytes": 2_500_000_000, "data_wait": 0.01, "skipped": 0, **values,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a <run>"
    folder.mkdir()
    lines = [line(step) for step in range(10, 210, 10)]
    write(folder, *lines, {"train_loss": 8.0, "epoch": 0, "step": 100})
    build_recipe({"task": "caption", "prompt": "<b>of", "train_file": "a.json"})[0].write(
        folder / "recipe.yaml"
    )
    return folder


def write(folder: Path, *lines: dict[str, Any] | str) -> None:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    (folder / "log.jsonl").write_text("\n".join(texts))


def test_curves_tiles_and_recipe(run: Path) -> None:
    page = Page(render_report(run))
    names = [h for h in page.headings if h and "→" not in h]
    assert names == [
        "All losses", "ITC", "LM", "Learning rate", "Norm of the gradient", "Images/s",
        "Waiting for data", "Model FLOPs utilisation", "Peak memory, GB",
    ]  # fmt: skip
    assert "8.9 → 7" in [h for h in page.headings if "→" in h]
    assert {"step 10: 8.9", "step 200: 7", "step 50: 1%", "step 50: 25%"} <= set(page.titles)
    assert re.search(r"Steps\s*200\s*epoch 2", page.text)
    assert re.search(r"Images/s\s*130\s*median", page.text)
    assert re.search(r"max_length\s*40", page.text) and re.search(
        r"train_file\s*a\.json", page.text
    )
    assert "Bad samples" not in page.text and "Damaged" not in page.text


def test_the_page_asks_no_other_machine_and_escapes(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (600, 200), (200, 30, 30)).save(tmp_path / "a.png")
    hostile = '<script>alert(1)</script> & "quotes"'
    samples = [
        SampleCaption(tmp_path / "a.png", "key<1>", hostile, hostile),
        SampleCaption((tmp_path / "a.png").read_bytes(), "bytes", "a human", "  "),
        SampleCaption(tmp_path / "gone.png", "gone", "a human", "", error="cannot <be> read"),
    ]
    text = render_report(run, samples)
    page = Page(text)
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert page.text.count(hostile) == 2 and "<b>of" in page.text and "a <run>" in page.text
    assert "cannot <be> read" in page.text and "(no text)" in page.text
    assert not re.search(r"url\(|@import|https?://", text) and "default-src 'none'" in text
    assert re.search(r'width="224" height="75"', text), "a picture keeps its shape"


def test_without_samples_the_reason_is_given(run: Path) -> None:
    assert "None: no model <yet>." in Page(render_report(run, [], "no model <yet>")).text


def test_the_last_line_may_be_half_written(run: Path) -> None:
    log = run / "log.jsonl"
    whole = read_log(run)
    log.write_text(log.read_text() + "\n" + json.dumps(line(300))[:40])
    assert read_log(run) == whole and whole.damaged == []
    log.write_bytes(log.read_bytes()[:-20] + b"\xff\xfe")
    assert read_log(run) == whole


def test_damage_elsewhere_is_counted_and_shown(run: Path) -> None:
    write(run, "{", line(10), "[1]", "null", '{"step": "x"}', line(20, skipped=3), line(30))
    log = read_log(run)
    assert [one["step"] for one in log.steps] == [10, 20, 30]
    assert log.damaged == [1, 3, 4]
    assert "3 lines of log.jsonl are no JSON" in Page(render_report(run)).text


def test_one_line_and_values_that_are_missing(run: Path) -> None:
    write(run, {"step": 1, "loss": 2.0, "lr": None, "mfu": "x", "data_wait": float("nan")})
    page = Page(render_report(run))
    assert [h for h in page.headings if h and "→" not in h] == ["All losses"]
    assert "step 1: 2" in page.titles
    (run / "recipe.yaml").write_text("- broken: [")
    assert "recipe.yaml is missing or damaged" in Page(render_report(run)).text


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no log\.jsonl, so it is no training run's folder"):
        read_log(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "train_loss": 2}\n')
    with pytest.raises(ValueError, match="no line of a step yet"):
        read_log(tmp_path)


def test_the_loops_own_log_is_understood(tmp_path: Path) -> None:
    """What `Watch` writes, so that a name changed there is missed here."""
    watch = Watch(
        tmp_path, torch.device("cpu"), writes=True, log_steps=1, loggers=[], peak=1e9,
        say=lambda text: None,
    )  # fmt: skip
    for step in (1, 2):
        watch.measure(4, 1000, 0.0)
        seen = Seen(
            step=step, rate=1e-4, losses={"itc": 1.0, "lm": 2.0}, norm=1.0, stop=False, skipped=1
        )
        watch.add(seen, 0, 2)
    watch.end_epoch(0, 2)
    watch.close()
    page = Page(render_report(tmp_path))
    assert len([h for h in page.headings if h and "→" not in h]) == 9
    assert re.search(r"Bad samples\s*1", page.text)


def test_a_curve_keeps_within_its_plot_and_ticks_are_round() -> None:
    drawn = curve("x", [10, 20, 40], [0.3, 1.7, 0.9], lambda v: f"{v:g}")
    points = [tuple(map(float, p.split(","))) for p in drawn.raw.split()]
    assert [x for x, _ in points] == [0, round(WIDTH / 3, 2), WIDTH]
    assert [label for _, label in drawn.ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert [y for y, _ in drawn.ticks] == [HEIGHT, 112.5, 75, 37.5, 0]
    assert [y for _, y in points] == [127.5, 22.5, 82.5]
    assert drawn.steps == [(0, "10"), (WIDTH, "40")]


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-12, 1e12])
def test_a_constant_is_a_line_in_the_middle(value: float) -> None:
    drawn = curve("x", [1, 2], [value, value], str)
    assert all(0 < float(p.split(",")[1]) < HEIGHT for p in drawn.raw.split())


def test_many_points_are_thinned_to_means() -> None:
    steps = list(range(1, 10_001))
    drawn = curve("x", steps, [float(s % 2) for s in steps], lambda v: f"{v:g}")
    assert MOST_POINTS / 2 < len(drawn.places) <= MOST_POINTS
    assert {place.label.split(": ")[1] for place in drawn.places} == {"0.5"}
    assert drawn.steps[-1][1] == "10,000"


def test_smoothing_is_centred_and_keeps_a_straight_line() -> None:
    straight = [float(i) for i in range(50)]
    assert smoothed(straight) == pytest.approx(straight)
    noisy = [i % 2 * 1.0 for i in range(200)]
    assert max(abs(v - 0.5) for v in smoothed(noisy)[20:-20]) < 0.05
    assert smoothed([3.0]) == [3.0]
    exact = curve("x", [1, 2, 3], [1.0, 5.0, 1.0], str, noisy=False)
    assert exact.raw == exact.smooth
