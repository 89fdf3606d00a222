"""From a folder to an index to answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip_fast.data.index import read_index, write_index
from blip_fast.scenes.render import render
from blip_fast.scenes.world import sample_scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve scenes, and one file that is no picture."""
    (tmp_path / "pictures").mkdir()
    for seed in range(12):
        picture = Image.fromarray(render(sample_scene(seed, things=1), 96))
        picture.save(tmp_path / "pictures" / f"{seed:02d}.png")
    (tmp_path / "pictures" / "99.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.fixture
def index(run: Any, folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("a red circle\na blue <b>square</b>\n", encoding="utf-8")
    flags = ("--texts", tmp_path / "texts.txt", "--output", tmp_path / "all.npy")
    assert run("embed", folder, *flags)[0] == 0
    return tmp_path / "all.npy"


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_text_finds_pictures_in_the_order_of_both_stages(
    run: Any, index: Path, folder: Path, scenes: Any
) -> None:
    text = "a red circle"
    found = rows(run("search", index, text, "--number", 12, "--rerank", 0, "--json")[1])
    paths = sorted(path for path in folder.glob("*.png") if path.name != "99.png")
    cosines = scenes.similarity(paths, text)[:, 0]
    nearest = cosines.argsort(descending=True).tolist()
    assert [row["name"] for row in found] == [str(paths[n]) for n in nearest]
    assert all("probability" not in row for row in found)

    found = rows(run("search", index, text, "--number", 9, "--rerank", 5, "--json")[1])
    scores = scenes.match(paths, text, score="logit")[:, 0] + cosines
    first = sorted(nearest[:5], key=lambda n: -scores[n])
    assert [row["name"] for row in found] == [str(paths[n]) for n in first + nearest[5:9]]
    assert [row["rank"] for row in found] == list(range(1, 10))
    assert ["probability" in row for row in found] == [True] * 5 + [False] * 4


def test_a_picture_finds_texts_and_its_like(run: Any, index: Path, folder: Path) -> None:
    texts = index.with_name("all_texts.npy")
    code, out, _ = run("search", texts, folder / "03.png")
    assert code == 0 and len(out.splitlines()) == 3 and "a red circle" in out
    like = rows(run("search", index, folder / "03.png", "--json")[1])
    assert like[0]["name"] == str(folder / "03.png")
    assert like[0]["similarity"] == pytest.approx(1, abs=1e-4) and "probability" not in like[0]
    code, _, err = run("search", index, folder / "03.png", "--rerank", 4)
    assert code == 1 and "leave it out" in err
    code, _, err = run("search", index, folder / "99.png", "--as", "image")
    assert code == 1 and "99.png" in err


def test_a_picture_that_has_gone_comes_last(run: Any, index: Path, folder: Path) -> None:
    first = rows(run("search", index, "a red circle", "--json")[1])[0]["name"]
    Path(first).unlink()
    code, out, _ = run("search", index, "a red circle", "--number", 12)
    assert code == 0
    last = out.splitlines()[-1].split("\t")
    assert last[1] == "unreadable" and last[3] == first


def test_a_contact_sheet_holds_its_pictures(run: Any, index: Path, folder: Path) -> None:
    sheet = index.with_name("sheet.html")
    code, _, err = run("search", index, "a <script> circle", "--html", sheet)
    page = sheet.read_text(encoding="utf-8")
    assert code == 0 and str(sheet) in err and "<script>" not in page
    assert page.count("data:image/jpeg;base64,") == 10 and "a &lt;script&gt; circle" in page
    run("search", index.with_name("all_texts"), folder / "03.png", "--html", sheet)
    page = sheet.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 1 and "&lt;b&gt;square" in page


def test_an_index_of_another_model_is_refused(run: Any, index: Path) -> None:
    old = read_index(index)
    write_index(index, old.features, old.rows, ("path", "status"), {"model": "x", "sha256": "00"})
    code, _, err = run("search", index, "a cat", "--model", "scenes")
    assert code == 1 and "was made by 'x'" in err
    write_index(index, old.features[:, :4], old.rows, ("path", "status"), {})
    code, _, err = run("search", index, "a cat")
    assert code == 1 and "names no model" in err
    code, _, err = run("search", index, "a cat", "--model", "scenes")
    assert code == 1 and "width 4" in err


def test_a_damaged_index_says_so(run: Any, index: Path, tmp_path: Path) -> None:
    assert "is missing" in run("search", tmp_path / "none", "a cat")[2]
    np.save(index, np.zeros((3, 8), np.float32))
    assert "not of one run" in run("search", index, "a cat")[2]
    index.write_bytes(b"nothing")
    assert "cannot be read" in run("search", index, "a cat")[2]


def test_faiss_finds_what_exact_search_finds(run: Any, index: Path) -> None:
    pytest.importorskip("faiss", reason="FAISS is an extra: pip install 'blip-fast[search]'")
    exact = run("search", index, "a red circle", "--engine", "exact")
    assert run("search", index, "a red circle", "--engine", "faiss") == exact
    assert index.with_suffix(".faiss").is_file()
    assert run("search", index, "a red circle", "--engine", "faiss") == exact


def test_faiss_asked_for_and_missing(run: Any, index: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run("search", index, "a red circle", "--engine", "faiss")
    assert code == 1 and "not installed" in err
