"""The cost curves: what is drawn is what was measured, and texts of another length are no cost."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import bench
from bench.chart import Curve, draw
from bench.e2e_cost import BEGINNING, HEADER, Point, main, rows_of, timed

RESULTS = Path(bench.__file__).parent / "results"
SVG = "{http://www.w3.org/2000/svg}"


def test_panels_show_points_in_proportion() -> None:
    curves = [
        Curve("a < b", [1, 2, 4], [1.0, 1.5, 2.0], [0.9, 1.4, 1.9], [1.1, 1.6, 2.1]),
        Curve("flat", [1, 8], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),
    ]
    root = ElementTree.fromstring(draw(curves, "a machine & its threads"))
    assert len(root.findall(f"{SVG}g")) == 2
    assert "a < b" in [text.text for text in root.iter(f"{SVG}text")]
    steep, flat = (
        [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
        for line in root.iter(f"{SVG}polyline")
    )
    (x1, y1), (x2, y2), (x4, y4) = steep
    assert (x4 - x2) == pytest.approx(2 * (x2 - x1), abs=0.3)
    assert (y1 - y4) == pytest.approx(2 * (y1 - y2), abs=0.3) and y4 < y2 < y1
    assert flat[0][1] == flat[1][1]
    # The dashed line begins at the first point and is steeper than both curves.
    for line, (x, y) in zip(root.iter(f"{SVG}line"), (steep[0], flat[0]), strict=True):
        ends = [float(line.get(name, "")) for name in ("x1", "y1", "x2", "y2")]
        assert ends[:2] == [x, y] and ends[3] < y
    width, height = (float(n) for n in re.findall(r"\d+", root.get("viewBox", ""))[2:])
    assert width > max(x4, x) and height > y1


def test_rows_say_how_many_times_the_first_each_takes() -> None:
    points = [Point(n, 2, lambda: torch.zeros(1)) for n in (1, 4)]
    curve = Curve("beams", [1, 4], [2.0, 3.0], [1.0, 2.0], [3.0, 4.0])
    first, second = rows_of("beams", points, curve)
    assert first == ["beams", "1", "2", "2.0000", "1.0000", "3.0000", "1.00"]
    assert second[-1] == "1.50" and len(second) == len(HEADER)


def test_texts_of_another_length_are_refused_before_timing() -> None:
    right, wrong = (torch.full((3,), BEGINNING + n) for n in (16, 15))
    curve = timed([Point(1, 1, lambda: right, 16), Point(2, 1, lambda: right, 16)], "texts", 2)
    assert curve.numbers == [1, 2] and min(curve.medians) > 0
    with pytest.raises(ValueError, match="texts, 2: texts have"):
        timed([Point(1, 1, lambda: right, 16), Point(2, 1, lambda: wrong, 16)], "texts", 2)


def test_the_command_writes_a_table_and_a_drawing(tmp_path: Path) -> None:
    small = "--images 2 --size 32 --layers 1 --turns 2 --threads 1 --dtype float32".split()
    files = ["--csv", str(tmp_path / "cost.csv"), "--svg", str(tmp_path / "cost.svg")]
    curves = main([*small, *files, "--only", "tokens", "images", "samples"])
    assert list(curves) == ["samples", "tokens", "images"]  # in the order of the curves
    with (tmp_path / "cost.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == HEADER and len(rows) == 4 + 4 + 3
    assert [row[1] for row in rows if row[0] == "tokens"] == ["4", "8", "16", "32"]
    assert len(ElementTree.parse(tmp_path / "cost.svg").findall(f"{SVG}g")) == 3


@pytest.mark.parametrize("path", sorted(RESULTS.glob("cost_*.csv")), ids=lambda p: p.name)
def test_results_can_be_read(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER
    assert all(float(r["low_s"]) <= float(r["median_s"]) <= float(r["high_s"]) for r in rows)
    panels = ElementTree.parse(path.with_suffix(".svg")).findall(f"{SVG}g")
    assert len(panels) == len({row["against"] for row in rows})
