"""Manifests: JSON files that name pictures and say what is to be learned about them.

    captions   [{"image": path, "caption": text or list of texts, "image_id": any}]
    COCO       {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    VQA        [{"question_id", "question", "answer": [texts], "image", "dataset": "vqa" or "vg"}]
    NLVR2      [{"sentence", "label", "images": [path, path]}]

All but COCO's may be JSON lines instead of a list. `url` or `file_name` may stand for `image`, and
`text` for `caption`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip_fast.data.files import displayable
from blip_fast.data.jsonrows import read_json_object, read_json_rows
from blip_fast.data.packed import PackedRows
from blip_fast.data.roots import below
from blip_fast.data.samples import BadSample, Sample, check_text

ImageRoot = str | Path | Mapping[str, str | Path]

# Names of fields, in order of preference.
IMAGE_FIELDS = ("image", "url", "file_name")
CAPTION_FIELDS = ("caption", "text")
_WEIGHT_OF_VG = 0.2  # of an answer of Visual Genome, where one person answered (BLIP)
_LABELS = {"true": True, "false": False, "1": True, "0": False}

# A row as it is kept: [image or images, text, image id, answers, weights, label, dataset], or the
# reason why it is bad.
_Row = list[Any] | str


class ManifestSource:
    """The samples of one manifest, in one shard."""

    def __init__(self, path: str | Path, image_root: ImageRoot | None = None) -> None:
        """Read and check a manifest.

        Args:
            image_root: what the paths of pictures begin below: a folder or URL, or one for each
                `dataset` that VQA rows name. The folder of the manifest where it is None.

        Raises:
            ValueError: where the file is damaged or no manifest, or holds no rows.
            OSError: where it cannot be read.
        """
        self.path = Path(path)
        self._root: ImageRoot = self.path.parent if image_root is None else image_root
        self._rows = PackedRows(_read(self.path))
        if not len(self._rows):
            raise ValueError(f"{self.name} holds no rows")

    @property
    def name(self) -> str:
        return displayable(self.path)

    @property
    def counts(self) -> Sequence[int]:
        return [len(self._rows)]

    def open(self, shard: int) -> ManifestSource:
        return self

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Sample:
        row = self._rows[number]
        if isinstance(row, str):
            raise BadSample(row)
        images, text, image_id, answers, weights, label, dataset = row
        names = images if isinstance(images, list) else [images]
        return Sample(
            key=f"{names[0]}#{number}",
            images=tuple(self._image(name, dataset) for name in names),
            text=check_text(text, f"{self.name}, sample {number}"),
            image_id=names[0] if image_id is None else str(image_id),
            answers=tuple(answers or ()),
            weights=tuple(weights or ()),
            label=label,
        )

    def _image(self, name: str, dataset: str | None) -> Path | str:
        root = self._root
        if isinstance(root, Mapping):
            if dataset is None or dataset not in root:
                raise BadSample(
                    f"{self.name}: the dataset is {dataset!r}; image_root has "
                    f"{', '.join(map(repr, root))}"
                )
            root = root[dataset]
        return below(root, name)


def _read(path: Path) -> Iterator[_Row]:
    name, coco = displayable(path), _coco(path)
    if coco is not None:
        yield from _coco_rows(coco, name)
        return
    read_row: Callable[[dict], Iterator[_Row]] | None = None
    for number, value in enumerate(read_json_rows(path)):
        if isinstance(value, BadSample):
            yield str(value)
            continue
        try:
            if not isinstance(value, dict):
                raise _Faulty(f"{json.dumps(value)[:60]} is not an object with fields")
            if read_row is None:
                read_row = _reader_of(value)
            yield from list(read_row(value))  # all of a row's samples or none
        except _Faulty as fault:
            if number == 0:  # most likely all rows are like this one
                raise ValueError(f"{name}, row 0: {fault}") from None
            yield f"{name}, row {number}: {fault}"


class _Faulty(ValueError):
    """What is wrong with a row, without saying which."""


def _reader_of(row: dict) -> Callable[[dict], Iterator[_Row]]:
    """By the fields of the first row, the kind of all of them."""
    if "sentence" in row:
        return _comparison
    if "question" in row:
        return _question
    if any(name in row for name in IMAGE_FIELDS):
        return _captions
    raise _Faulty(
        f"the fields are {', '.join(map(repr, row))}; expected image and caption, question and "
        "answer, or sentence and images"
    )


def _captions(row: dict) -> Iterator[_Row]:
    image = _text(row, *IMAGE_FIELDS)
    captions = _field(row, *CAPTION_FIELDS)
    if not isinstance(captions, list):
        captions = [captions]
    if not captions:
        raise _Faulty("the list of captions is empty")
    for caption in captions:
        if not isinstance(caption, str):
            raise _Faulty(f"a caption is {json.dumps(caption)[:60]}, not a text")
        yield [image, caption, row.get("image_id"), None, None, None, None]


def _question(row: dict) -> Iterator[_Row]:
    image, question = _text(row, *IMAGE_FIELDS), _text(row, "question")
    answers = _field(row, "answer", "answers")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not _are_texts(answers):
        raise _Faulty(f"answer is {json.dumps(answers)[:60]}, not a list of texts")
    times = Counter(answers)  # keeps the order of first appearance
    dataset = row.get("dataset")
    weights = [_WEIGHT_OF_VG if dataset == "vg" else n / len(answers) for n in times.values()]
    yield [image, question, row.get("image_id"), list(times), weights, None, dataset]


def _comparison(row: dict) -> Iterator[_Row]:
    sentence, images = _text(row, "sentence"), _field(row, "images")
    if not isinstance(images, list) or len(images) != 2 or not _are_texts(images):
        raise _Faulty(f"images is {json.dumps(images)[:60]}, not two paths")
    label = _LABELS.get(str(_field(row, "label")).lower())
    if label is None:
        raise _Faulty(f"label is {row['label']!r}, not true or false")
    yield [images, sentence, None, None, None, label, None]


def _coco(path: Path) -> dict | None:
    """The whole of a file in COCO's format; None where it is of another."""
    value = read_json_object(path)
    return value if value is not None and "images" in value and "annotations" in value else None


def _coco_rows(coco: dict, name: str) -> Iterator[_Row]:
    files: dict[Any, str] = {}
    for number, image in enumerate(coco["images"]):
        try:
            files[image["id"]] = image["file_name"]
        except (TypeError, KeyError):
            raise ValueError(f"{name}, images, row {number}: id or file_name is missing") from None
    for number, row in enumerate(coco["annotations"]):
        where = f"{name}, annotations, row {number}"
        try:
            caption = _text(row, "caption")
            image_id = _field(row, "image_id")
            if image_id not in files:
                raise _Faulty(f"image_id {image_id!r} is none of the images")
        except _Faulty as fault:
            if number == 0:
                raise ValueError(f"{where}: {fault}") from None
            yield f"{where}: {fault}"
            continue
        yield [files[image_id], caption, image_id, None, None, None, None]


def _field(row: dict, *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise _Faulty(f"{' or '.join(names)} is missing; the fields are {', '.join(map(repr, row))}")


def _text(row: dict, *names: str) -> str:
    value = _field(row, *names)
    if not isinstance(value, str):
        raise _Faulty(f"{' or '.join(names)} is {json.dumps(value)[:60]}, not a text")
    return value


def _are_texts(values: list) -> bool:
    return all(isinstance(value, str) for value in values)
