"""Manifests of every task; faults named with file, row and what is missing."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from blip_fast.data import jsonrows
from blip_fast.data.manifests import ManifestSource
from blip_fast.data.samples import BadSample, Sample
from blip_fast.images import Status


@pytest.fixture
def write(tmp_path: Path):
    def to_file(value: Any, name: str = "train.json") -> Path:
        path = tmp_path / name
        text = value if isinstance(value, str) else json.dumps(value)
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def samples(source: ManifestSource) -> list[Sample]:
    assert list(source.counts) == [len(source)]
    shard = source.open(0)
    return [shard[i] for i in range(len(shard))]


def test_captions_with_and_without_lists(write) -> None:
    path = write(
        [
            {"image": "a.jpg", "caption": "a cat", "image_id": 17},
            {"image": "/else/b.jpg", "caption": ["a dog", "ein Hund 🐕"]},
            {"url": "https://example.org/c.jpg", "text": "a cow", "image_id": "coco_1"},
        ]
    )
    found = samples(ManifestSource(path, "/photos"))
    assert [s.text for s in found] == ["a cat", "a dog", "ein Hund 🐕", "a cow"]
    assert [s.images for s in found] == [
        (Path("/photos/a.jpg"),),
        (Path("/else/b.jpg"),),
        (Path("/else/b.jpg"),),
        ("https://example.org/c.jpg",),
    ]
    assert [s.image_id for s in found] == ["17", "/else/b.jpg", "/else/b.jpg", "coco_1"]
    assert len({s.key for s in found}) == 4
    assert found[0].answers == () and found[0].label is None


def test_pictures_lie_beside_the_manifest_or_below_a_url(write) -> None:
    path = write([{"image": "a b.jpg", "caption": "x"}])
    assert samples(ManifestSource(path))[0].images == (path.parent / "a b.jpg",)
    assert samples(ManifestSource(path, "s3://bucket/"))[0].images == ("s3://bucket/a b.jpg",)


def test_json_lines(write) -> None:
    rows = [{"file_name": f"{n}.jpg", "text": f"text {n}"} for n in range(3)]
    path = write("\n\n".join(map(json.dumps, rows)) + '\n{"file_name": "3.jp', "metadata.jsonl")
    source = ManifestSource(path)
    assert [source[n].text for n in range(3)] == ["text 0", "text 1", "text 2"]
    with pytest.raises(BadSample, match=r"metadata.jsonl, line 6"):
        source[3]  # a writer was stopped


@pytest.mark.parametrize("indent", [None, 2])
def test_coco(write, indent: int | None) -> None:
    coco = {
        "info": {"year": 2017},
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "two cats "},
            {"id": 2, "image_id": 9, "caption": "cats"},
            {"id": 3, "image_id": 8, "caption": "a car"},
        ],
        "images": [{"id": 8, "file_name": "8.jpg"}, {"id": 9, "file_name": "9.jpg"}],
    }
    path = write(json.dumps(coco, indent=indent))
    found = samples(ManifestSource(path, "/coco"))
    assert [(s.images[0], s.text, s.image_id) for s in found] == [
        (Path("/coco/9.jpg"), "two cats ", "9"),
        (Path("/coco/9.jpg"), "cats", "9"),
        (Path("/coco/8.jpg"), "a car", "8"),
    ]


def test_coco_faults(write) -> None:
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}],
    }
    source = ManifestSource(write(coco))
    assert source[0].text == "a"
    with pytest.raises(BadSample, match="train.json, annotations, row 1: image_id 2 is none of"):
        source[1]
    with pytest.raises(ValueError, match="train.json, images, row 0: id or file_name is missing"):
        ManifestSource(write(coco | {"images": [{"id": 1}]}))


def test_real_coco(shared_data: Path) -> None:
    folder = shared_data / "coco_train80"
    source = ManifestSource(folder / "captions.json", folder / "images")
    found = samples(source)
    assert len(found) == 400 and len({s.image_id for s in found}) == 80
    assert all(Path(s.images[0]).is_file() for s in found)


def test_vqa_weights(write) -> None:
    answers = ["yes"] * 7 + ["no"] * 2 + ["maybe"]
    row = {"question_id": 1, "question": "is it?", "image": "v.jpg"}
    path = write(
        [
            row | {"answer": answers, "dataset": "vqa"},
            row | {"answer": "red", "dataset": "vg", "image": "g.jpg"},
        ]
    )
    first, second = samples(ManifestSource(path, {"vqa": "/vqa", "vg": "/vg"}))
    assert first.answers == ("yes", "no", "maybe") and first.weights == (0.7, 0.2, 0.1)
    assert second.answers == ("red",) and second.weights == (0.2,)
    assert first.images == (Path("/vqa/v.jpg"),) and second.images == (Path("/vg/g.jpg"),)
    assert first.text == "is it?"
    with pytest.raises(BadSample, match="the dataset is 'vg'; image_root has 'vqa'"):
        ManifestSource(path, {"vqa": "/vqa"})[1]


def test_nlvr2(write) -> None:
    rows = [
        {"sentence": "both are red", "label": label, "images": ["l.png", "r.png"]}
        for label in ("True", "False", True, False, 1, 0)
    ]
    found = samples(ManifestSource(write(rows), "/nlvr"))
    assert [s.label for s in found] == [True, False] * 3
    assert found[0].images == (Path("/nlvr/l.png"), Path("/nlvr/r.png"))
    assert found[0].text == "both are red"


GOOD = {"image": "a.jpg", "caption": "a cat"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "b.jpg"}, "caption or text is missing; the fields are 'image'"),
        ({"image": "b.jpg", "caption": None}, "caption or text is missing"),
        ({"image": 7, "caption": "x"}, "image or url or file_name is 7, not a text"),
        ({"image": "b.jpg", "caption": ["x", 5]}, "a caption is 5, not a text"),
        ({"image": "b.jpg", "caption": []}, "the list of captions is empty"),
        (["b.jpg", "x"], "is not an object with fields"),
    ],
)
def test_a_faulty_row_costs_itself_alone(write, row: Any, message: str) -> None:
    source = ManifestSource(write([GOOD, row, GOOD]))
    assert source[0].text == source[2].text == "a cat"
    with pytest.raises(BadSample, match=rf"train.json, row 1: .*{message}"):
        source[1]
    with pytest.raises(ValueError, match=rf"train.json, row 0: .*{message}"):
        ManifestSource(write([row, GOOD]))  # the first: most likely all are like it


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "image": "a", "answer": []}, r"answer is \[\], not a list of texts"),
        ({"question": "q", "image": "a"}, "answer or answers is missing"),
        ({"sentence": "s", "images": ["a"], "label": 1}, "not two paths"),
        ({"sentence": "s", "images": ["a", "b"], "label": "x"}, "label is 'x'"),
        ({"question": "q", "answer": "x"}, "image or url or file_name is missing"),
        ({"key": 1}, "the fields are 'key'; expected image and caption, question and"),
    ],
)
def test_other_kinds_of_faulty_rows(write, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"train.json, row 0: .*{message}"):
        ManifestSource(write([row]))


def test_empty_texts_and_half_characters(write) -> None:
    path = write(
        '[{"image": "a\\ud83d.jpg", "caption": " \\n"}, {"image": "b", "caption": "x\\ud83d"}]'
    )
    source = ManifestSource(path)
    with pytest.raises(BadSample, match="sample 0: the text is empty") as raised:
        source[0]
    assert raised.value.status is Status.EMPTY_TEXT
    assert source[1].text == "x?"


def test_damaged_files(write) -> None:
    for text, message in (
        ("[]", "holds no rows"),
        ("", "holds no rows"),
        ('[{"image": "a", "caption": "b"}, {"image": "c"', "row 1: .*"),
        ('[{"image": "a", "caption": "b"}', "row 0: the list does not end"),
        ('[{"image": "a", "caption": "b"}, nonsense]', "row 1: Expecting value"),
    ):
        with pytest.raises(ValueError, match=f"train.json,? {message}"):
            ManifestSource(write(text))
    path = write("")
    path.write_bytes('[{"image": "é"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match="train.json is not UTF-8"):
        ManifestSource(path)


def test_rows_cut_by_chunks_at_any_place(write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": "x" * 30}, 12, [1, [2]], "text, ]", -1.5, None]
    path = write(json.dumps(rows, indent=1))
    for chunk in range(1, 40):
        monkeypatch.setattr(jsonrows, "_CHUNK", chunk)
        assert list(jsonrows.read_json_rows(path)) == rows


def test_memory_is_that_of_the_text(write) -> None:
    """20,000 rows of 110 bytes: dictionaries would take 9 MB, and all of the text 2.2 MB twice."""
    rows = [
        {"image": f"train/{n:012}.jpg", "caption": f"{n} " + "word " * 12} for n in range(20000)
    ]
    path = write(rows)
    del rows
    tracemalloc.start()
    source = ManifestSource(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20000
    assert kept < 1.5 * path.stat().st_size
    assert peak < 4 * path.stat().st_size
