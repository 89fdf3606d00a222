"""The small world as files: tar shards like img2dataset's, and manifests for VQA and NLVR2.

What is written depends on the arguments alone, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip_fast.data import chunks, replacing, write_json
from blip_fast.scenes.pairs import SceneSource, World, png

_SUFFIXES = ("png", "txt", "json")


def make_shards(folder: Path, world: World, pairs: int, per_shard: int = 1000) -> int:
    """Write pictures with texts: 00000.tar, 00000.parquet, 00000_stats.json, 00001.tar and so on.

    A key's members are .png, .txt and .json; the last one holds the truth: the scene, the noise
    and the verdict on the text. The stats are written last: a shard that has them is complete.

    Returns:
        the number of shards.

    Raises:
        ValueError: where `pairs` is not positive, or the folder holds shards already.
    """
    _prepare(folder, pairs, "00000.tar")
    number = 0
    for number, some in enumerate(chunks(range(pairs), per_shard), 1):
        _write_shard(folder, f"{number - 1:05d}", world, some)
    return number


def make_questions(folder: Path, world: World, number: int) -> Path:
    """Write pictures and `vqa.json`: rows {question, answer, image, dataset, question_id}."""
    _prepare(folder, number, "vqa.json")
    source, rows = SceneSource(world, number, "vqa"), []
    for sample, images in _pictures(folder, source):
        row = {"question_id": int(sample.key), "image": images[0], "dataset": "vqa"}
        rows.append({**row, "question": sample.text, "answer": list(sample.answers)})
    write_json(folder / "vqa.json", rows)
    return folder / "vqa.json"


def make_statements(folder: Path, world: World, number: int) -> Path:
    """Write pictures and `nlvr.json`: rows {sentence, label, images: [left, right]}."""
    _prepare(folder, number, "nlvr.json")
    source, rows = SceneSource(world, number, "nlvr"), []
    for sample, images in _pictures(folder, source):
        label = "True" if sample.label else "False"  # text, as in the reference's files
        rows.append({"sentence": sample.text, "label": label, "images": images})
    write_json(folder / "nlvr.json", rows)
    return folder / "nlvr.json"


def _prepare(folder: Path, number: int, first: str) -> None:
    if number < 1:
        raise ValueError(f"{number} samples were asked for; ask for 1 at least")
    if (folder / first).exists():
        raise ValueError(f"{folder} holds {first} already; name a folder that does not")
    folder.mkdir(parents=True, exist_ok=True)


def _write_shard(folder: Path, name: str, world: World, numbers: list[int]) -> None:
    from blip_fast.data.table import write_table

    rows = []
    with replacing(folder / f"{name}.tar") as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                row, members = _members(world, number)
                rows.append({**row, "scene": json.dumps(row["scene"])})
                for suffix, data in zip(_SUFFIXES, members, strict=True):
                    member = tarfile.TarInfo(f"{row['key']}.{suffix}")
                    member.size, member.mtime = len(data), 0
                    tar.addfile(member, io.BytesIO(data))
    write_table(folder / f"{name}.parquet", rows, _schema())
    write_json(folder / f"{name}_stats.json", _stats(len(numbers)))


def _members(world: World, number: int) -> tuple[dict[str, Any], tuple[bytes, bytes, bytes]]:
    """The table's row and the contents of the three members."""
    scene, text = world.pair(number)
    picture = png(scene, world.size)
    sides = ("width", "height", "original_width", "original_height")
    row = {
        "key": f"{number:09d}",
        "url": f"scenes://{world.split}/{world.seed}/{number}",
        "caption": text.text,
        "status": "success",
        "error_message": None,
        **dict.fromkeys(sides, world.size),
        "sha256": hashlib.sha256(picture).hexdigest(),
        "verdict": text.verdict,
        "noise": text.noise,
        "noise_detail": text.detail,
        "scene": scene.to_dict(),
    }
    return row, (picture, text.text.encode(), json.dumps(row).encode())


def _schema() -> Any:
    import pyarrow as pa

    texts = ("key", "url", "caption", "status", "error_message")
    sides = ("width", "height", "original_width", "original_height")
    truth = ("sha256", "verdict", "noise", "noise_detail", "scene")
    columns = [(n, pa.string()) for n in texts] + [(n, pa.int32()) for n in sides]
    return pa.schema(columns + [(n, pa.string()) for n in truth])


def _stats(count: int) -> dict[str, Any]:
    """img2dataset's keys; times are zero, so that the same call writes the same bytes."""
    return {
        "count": count,
        "successes": count,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": 0.0,
        "start_time": 0.0,
        "end_time": 0.0,
        "status_dict": {"success": count},
    }


def _pictures(folder: Path, source: SceneSource) -> Iterator[tuple[Any, list[str]]]:
    """Samples, their pictures written to files, with the names of those."""
    (folder / "images").mkdir(exist_ok=True)
    sides = ("",) if source.task == "vqa" else ("-left", "-right")
    for shard in range(len(source.counts)):
        samples = source.open(shard)
        for sample in (samples[n] for n in range(len(samples))):
            names = [f"images/{sample.key}{side}.png" for side in sides]
            for name, image in zip(names, sample.images, strict=True):
                assert isinstance(image, bytes)  # a SceneSource has no files
                (folder / name).write_bytes(image)
            yield sample, names
