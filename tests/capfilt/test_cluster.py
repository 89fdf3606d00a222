"""The callable from batch to batch: the same answers as a run, whoever calls it."""

from __future__ import annotations

import io
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from capfilt_stub import StubBlip
from PIL import Image

from blip_fast.capfilt import (
    SCHEMA,
    CapFilter,
    CapFiltOptions,
    read_rows,
    run_capfilt,
    run_on_ray,
)
from blip_fast.capfilt.cluster import ADDED
from blip_fast.capfilt.ray_run import ShardWorker
from blip_fast.capfilt.rows import committed

OPTIONS = CapFiltOptions(batch_size=2, num_captions=2)
calls: list[str] = []


def stub(name: str = "one", **settings: Any) -> StubBlip:
    calls.append(name)
    return StubBlip(**settings)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def png(level: int, size: tuple[int, int] = (30, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(file, "PNG")
    return file.getvalue()


def column(*values: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_the_same_answers_as_a_run(source: Path, tmp_path: Path) -> None:
    model = StubBlip()
    run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    rows = list(read_rows(tmp_path / "out"))
    batch = {
        "image": column(*((source / row["key"]).read_bytes() for row in rows)),
        "key": column(*(row["key"] for row in rows)),
        "text": column(*(row["web_texts"] for row in rows)),
        "other": np.arange(len(rows)),
    }
    answer = CapFilter(partial(stub), options=OPTIONS)(batch)
    assert list(answer) == ["image", "key", "text", "other", *ADDED]
    assert all(answer[name] is batch[name] for name in batch)
    for name in ADDED:
        assert isinstance(answer[name], pa.Array) and answer[name].type == SCHEMA.field(name).type
        assert answer[name].to_pylist() == [row[name] for row in rows]
    assert "failed_to_decode" in answer["status"].to_pylist()


def test_batches_and_neighbours_change_nothing() -> None:
    capfilter = CapFilter(partial(stub), options=OPTIONS)
    images, keys = [png(level) for level in range(0, 250, 50)], list("abcde")
    together = capfilter({"image": column(*images), "key": column(*keys)})
    for place in range(5):
        alone = capfilter({"image": column(images[place]), "key": column(keys[place])})
        assert alone["candidates"][0] == together["candidates"][place]
    empty = capfilter({"image": column(), "key": column()})
    assert len(empty["candidates"]) == 0 and empty["candidates"].type == alone["candidates"].type


def test_what_columns_may_hold(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(90))
    images = [png(90), str(tmp_path / "a.png"), np.full((20, 30, 3), 90, np.uint8), b"", "/gone"]
    texts = ["a text", ["one", "two"], None, "a text", float("nan")]
    answer = CapFilter(partial(stub), options=OPTIONS, image="jpg", key="uid", text="caption")(
        {"jpg": column(*images), "uid": np.arange(5), "caption": column(*texts)}
    )
    assert answer["status"].to_pylist() == ["success"] * 3 + ["failed_to_read"] * 2
    assert answer["width"].to_pylist() == [30, 30, 30, None, None]
    web = [
        [c["text"] for c in candidates if c["source"] == "web"]
        for candidates in answer["candidates"].to_pylist()
    ]
    assert web == [["a text"], ["one", "two"], [], [], []]
    with pytest.raises(ValueError, match="columns jpg, uid; image and key are missing"):
        CapFilter(partial(stub))({"jpg": column(png(1)), "uid": column("a")})


def test_models_are_loaded_once_and_late() -> None:
    first, second = partial(stub, "first"), partial(stub, "second", size=48)
    capfilter = CapFilter([first, second], [first], OPTIONS)
    assert calls == []
    batch = {"image": column(png(10)), "key": column("a")}
    once, again = capfilter(batch), capfilter(batch)
    assert calls == ["first", "second"] and once["candidates"] == again["candidates"]
    # What is sent to another machine holds no model.
    sent = pickle.dumps(capfilter)
    assert len(sent) < 4000 and calls == ["first", "second"]
    there = pickle.loads(sent)
    assert there(batch)["candidates"] == once["candidates"]
    assert calls == ["first", "second"] * 2
    captioners = {c["captioner"] for c in once["candidates"][0].as_py()}
    assert captioners == {0, 1}


def test_a_worker_does_shards_and_says_what_stops_it(source: Path, tmp_path: Path) -> None:
    """The callable that Ray calls, without Ray."""
    options = replace(OPTIONS, shard_size=3)
    spec = [partial(stub)]
    worker = pickle.loads(
        pickle.dumps(ShardWorker(str(source), tmp_path / "out", spec, spec, options))
    )
    orders = {"shard": np.array([0, 2]), "claims": np.zeros(2, int)}
    answer = worker(orders)
    assert calls == ["one"] and list(answer["error"]) == ["", ""]
    assert list(answer["count"]) == [3, 1] and committed(tmp_path / "out") == ["00000", "00002"]
    assert not any(pickle.loads(summary).complete for summary in answer["summary"])
    last = worker({"shard": np.array([1]), "claims": np.zeros(1, int)})
    assert pickle.loads(last["summary"][0]).complete and (tmp_path / "out/report.html").is_file()
    assert list(worker(orders)["count"]) == [0, 0]  # done, and not done again

    other = ShardWorker(str(source), tmp_path / "out", spec, spec, replace(options, seed=1))
    (error,) = other({"shard": np.array([0]), "claims": np.zeros(1, int)})["error"]
    assert error.startswith("ValueError") and "seed was 0 and is 1" in error


def test_deaths_at_a_shard_are_counted(source: Path, tmp_path: Path) -> None:
    claims = tmp_path / "out" / ".work" / "claims"
    claims.mkdir(parents=True)
    (claims / "00000.9").write_text("somebody-who-died")
    worker = ShardWorker(str(source), tmp_path / "out", [stub], [stub], OPTIONS)
    (error,) = worker({"shard": np.array([0]), "claims": np.array([5])})["error"]
    assert "4 processes have died at it" in error and calls == []
    # Those who died before this run began do not count.
    (error,) = worker({"shard": np.array([0]), "claims": np.array([6])})["error"]
    assert error == ""


def test_without_ray_the_remedy_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"blip-fast\[ray\]"):
        run_on_ray(source, tmp_path / "out", [stub], [stub], OPTIONS)
    with pytest.raises(ValueError, match="workers is 0"):
        run_on_ray(source, tmp_path / "out", [stub], [stub], OPTIONS, workers=0)


def test_a_name_is_loaded_by_the_package() -> None:
    batch = {"image": column(png(10)), "key": column("a"), "text": column("a red circle")}
    answer = CapFilter("scenes", options=CapFiltOptions(num_beams=1))(batch)
    (candidates,) = answer["candidates"].to_pylist()
    assert [c["source"] for c in candidates] == ["web", "synthetic"]
    assert all(c["itm_probability"] is not None for c in candidates)
