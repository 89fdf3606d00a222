"""Checkpoints: whole or not there, read by any number of processes, the newest whole one first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training import run_processes
from training_jobs import go_on

from blip_fast.train import checkpoint
from blip_fast.train.checkpoint import MARK, Checkpointer, Loaded

FINGERPRINT = {"task": "caption", "sizes": {"width": 4}}


def values(number: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 4), number), "step": torch.tensor(number)}


def saver(folder: Path, keep: int = 3, **changes: Any) -> Checkpointer:
    return Checkpointer(folder, keep, {**FINGERPRINT, **changes})


def save(folder: Path, *steps: int, keep: int = 3) -> None:
    checkpoints = saver(folder, keep)
    for step in steps:
        checkpoints.save(step, values(step), {"epoch": step / 7})
    checkpoints.close()


def load(folder: Path) -> tuple[Loaded | None, dict[str, torch.Tensor]]:
    tensors = values(-1)
    checkpoints = saver(folder)
    loaded = checkpoints.load_latest(tensors)
    checkpoints.close()
    return loaded, tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_comes_back_and_the_oldest_go(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 30, 4, keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000030"]
    loaded, tensors = load(tmp_path)
    assert loaded == Loaded(30, {"epoch": 30 / 7})
    assert torch.equal(tensors["weight"], values(30)["weight"]) and tensors["step"] == 30


def test_nothing_is_loaded_from_nothing(tmp_path: Path) -> None:
    loaded, tensors = load(tmp_path / "new")
    assert loaded is None and tensors["step"] == -1


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    checkpoints = saver(tmp_path)
    checkpoints.save(1, values(1), {})
    checkpoints.wait()
    written = (tmp_path / "step-00000001" / MARK).stat().st_mtime_ns
    checkpoints.save(1, values(1), {})
    checkpoints.close()
    assert (tmp_path / "step-00000001" / MARK).stat().st_mtime_ns == written


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def data_of(folder: Path) -> Path:
    return next(folder.glob("*.distcp"))


DAMAGES = {
    "cut": (lambda folder: cut(data_of(folder)), "bytes, not"),
    "flipped": (lambda folder: flip(data_of(folder)), "other content than was written"),
    "lost": (lambda folder: data_of(folder).unlink(), "is missing"),
    "unmarked": (lambda folder: (folder / MARK).unlink(), f"it has no {MARK}"),
    "half marked": (lambda folder: cut(folder / MARK), f"its {MARK} cannot be read"),
    "empty mark": (lambda folder: (folder / MARK).write_text("[]"), f"its {MARK} cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_skipped(tmp_path: Path, damage: str) -> None:
    break_it, why = DAMAGES[damage]
    save(tmp_path, 1, 2)
    break_it(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match=f"step-00000002 is damaged and left out: .*{why}"):
        loaded, tensors = load(tmp_path)
    assert loaded is not None and loaded.step == 1 and tensors["weight"].eq(1).all()
    assert names(tmp_path) == ["step-00000001", "step-00000002.damaged"]
    # The run comes by again; what was put aside goes once something newer is there.
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_unreadable_in_spite_of_its_mark(tmp_path: Path) -> None:
    """What torch cannot read is damaged too, whatever its mark says."""
    save(tmp_path, 1, 2)
    folder = tmp_path / "step-00000002"
    (folder / ".metadata").write_bytes(b"nothing")
    note = json.loads((folder / MARK).read_bytes())
    note["files"][".metadata"] = list(checkpoint._size_and_sum(folder / ".metadata"))
    (folder / MARK).write_text(json.dumps(note))
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        loaded, tensors = load(tmp_path)
    assert loaded is not None and loaded.step == 1 and tensors["weight"].eq(1).all()


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    cut(data_of(tmp_path / "step-00000001"))
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"step-00000001.damaged; remove them to start anew"),
    ):
        load(tmp_path)


def test_what_was_half_written_goes(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000002.tmp").mkdir()
    (tmp_path / "step-00000002.tmp" / "__0_0.distcp").write_bytes(b"half")
    loaded, _ = load(tmp_path)
    assert loaded is not None and loaded.step == 1
    assert names(tmp_path) == ["step-00000001"]


def test_another_run_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = saver(tmp_path, task="vqa")
    with pytest.raises(ValueError, match="task was 'caption' and is 'vqa'. Set what it was"):
        other.load_latest(values(0))


def test_keep_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_checkpoints is 0"):
        saver(tmp_path, keep=0)


def test_failed_save_is_told_and_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saver(tmp_path)
    checkpoints.save(1, values(1), {})
    checkpoints.wait()

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", full_disk)
        checkpoints.save(2, values(2), {})
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
    checkpoints.close()
    loaded, _ = load(tmp_path)
    assert loaded is not None and loaded.step == 1


def test_resume_from_two_processes_to_one_and_back(tmp_path: Path) -> None:
    """Weights, moments, momentum encoders, queues: all shards come back, on other processes too.

    The copies are those of the moment of saving, though training goes on while they are written.
    """
    folder = tmp_path / "checkpoints"
    kept = []
    plan: list[tuple[int, int, dict[str, Any]]] = [
        (2, 0, {"batch_size": 2}),
        (1, 2, {"batch_size": 4}),
        (2, 4, {"batch_size": 2, "dtype": "bfloat16"}),
    ]
    for number, first, changes in plan:
        file = tmp_path / f"from {first}.pt"
        assert run_processes(go_on, number, folder, file, 2, first, changes) == [0] * number
        kept.append(torch.load(file, weights_only=True))
        assert kept[-1]["loaded"] == first
    assert names(folder) == ["step-00000004", "step-00000006"]
    for earlier, later in zip(kept, kept[1:], strict=False):
        assert earlier["after"].keys() == later["before"].keys()
        for name, tensor in earlier["after"].items():
            assert torch.equal(tensor, later["before"][name]), name
    steps = kept[-1]["after"]["optimizer.model.vision.norm.weight.step"]
    assert steps == 6 and kept[-1]["after"]["objective.contrast.queue.pointer"] == 0
