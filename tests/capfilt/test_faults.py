"""What goes wrong ends in a clear message and a state from which the same call goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_fast.capfilt import CapFiltOptions, StageFailed, ledger, read_rows, run_capfilt
from blip_fast.capfilt.ledger import Ledger
from blip_fast.capfilt.rows import committed
from blip_fast.cli import main
from blip_fast.data.web import open_web

OPTIONS = CapFiltOptions(batch_size=2, shard_size=2, gallery=3)


@pytest.fixture
def clean(source: Path, tmp_path: Path, stub: Any) -> list[dict[str, Any]]:
    """The rows of a run that nothing disturbed: seven pictures in four shards."""
    model = stub()
    run_capfilt(source, tmp_path / "clean", model, model, OPTIONS)
    return list(read_rows(tmp_path / "clean"))


def goes_on(source: Path, output: Path, stub: Any, clean: list[dict[str, Any]]) -> None:
    model = stub()
    summary = run_capfilt(source, output, model, model, OPTIONS)
    assert summary.complete and list(read_rows(output)) == clean
    assert not (output / ".work").exists()


class Failing:
    """Makes one method of a stub raise at its so-many-th call."""

    def __init__(self, model: Any, method: str, at: int, error: BaseException) -> None:
        self.calls, self.at, self.error = 0, at, error
        self.inner = getattr(model, method)
        setattr(model, method, self)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.inner(*args, **settings)


@pytest.mark.parametrize(("method", "stage"), [("caption", "captioner"), ("match", "filter")])
def test_a_dying_worker(
    source: Path, tmp_path: Path, stub: Any, clean: Any, method: str, stage: str
) -> None:
    model = stub()
    Failing(model, method, 3, RuntimeError("device lost"))
    message = f"stage '{stage}' failed at shard 00002, pictures 0 to 1: RuntimeError: device lost"
    with pytest.raises(StageFailed, match=message):
        run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    assert committed(tmp_path / "out") in (["00000", "00001"], ["00000"], [])
    assert not list((tmp_path / "out").glob("00002*"))
    goes_on(source, tmp_path / "out", stub, clean)


def test_a_decoder_that_hangs_costs_a_row(
    source: Path,
    tmp_path: Path,
    stub: Any,
    clean: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from blip_fast.capfilt import jobs

    ever, real = threading.Event(), jobs.decode

    def decode(data: bytes, options: Any) -> Any:
        if data.startswith(b"\xff\xd8\xff\xe0 and no more"):
            ever.wait()
        return real(data, options)

    monkeypatch.setattr(jobs, "decode", decode)
    model = stub()
    options = replace(OPTIONS, patience=2.0)
    summary = run_capfilt(source, tmp_path / "out", model, model, options)
    ever.set()
    (failure,) = summary.failures
    assert failure[:2] == ("d_broken.jpg", "failed_to_decode")
    assert failure[2] == "decoding did not end within 2 seconds"
    (told,) = caplog.messages  # where it stands, for whoever repairs the decoder
    assert told.startswith(f"decoding hangs at {source}/d_broken.jpg; it") and "ever.wait()" in told
    good = [row for row in read_rows(tmp_path / "out") if row["key"] != "d_broken.jpg"]
    assert good == [row for row in clean if row["key"] != "d_broken.jpg"]


def test_bytes_that_never_come_have_a_name_and_one_stack(
    source: Path,
    tmp_path: Path,
    stub: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from blip_fast.capfilt import jobs

    ever, real = threading.Event(), jobs.read_bytes

    def read(image: Any, most: int) -> bytes:
        if image.name in ("a_good.png", "c_nan.png"):
            ever.wait()
        return real(image, most)

    monkeypatch.setattr(jobs, "read_bytes", read)
    model = stub()
    summary = run_capfilt(source, tmp_path / "out", model, model, replace(OPTIONS, patience=1.0))
    ever.set()
    hung = [key for key, _, error in summary.failures if error.startswith("reading did not end")]
    assert hung == ["a_good.png", "c_nan.png"] and len(caplog.messages) == 1


def test_the_disk_is_full(source: Path, tmp_path: Path, stub: Any, clean: Any) -> None:
    """A limit on the size of files: the system refuses to write, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        model = stub()
        with pytest.raises(OSError, match=r"shard 0000\d could not be written .*goes on") as full:
            run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert full.value.errno == errno.EFBIG
    assert not list((tmp_path / "out").glob("0*")) and not (tmp_path / "out/.work").exists()
    goes_on(source, tmp_path / "out", stub, clean)


def test_a_folder_that_disappears(source: Path, tmp_path: Path, stub: Any, clean: Any) -> None:
    away, model, web = tmp_path / "away", stub(), open_web(source, 2)
    opening = web.open

    def take_away(shard: int) -> Any:
        if shard == 2:
            source.rename(away)
        return opening(shard)

    web.open = take_away  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError, match="the folder .* is gone"):
        run_capfilt(web, tmp_path / "out", model, model, OPTIONS)
    assert set(committed(tmp_path / "out")) <= {"00000", "00001"}
    away.rename(source)
    goes_on(source, tmp_path / "out", stub, clean)


def test_a_shard_that_disappears(tmp_path: Path, stub: Any, two_tars: Path) -> None:
    second = two_tars / "00001.tar"
    source, model = open_web(two_tars), stub()
    held = second.rename(tmp_path / "held.tar")
    summary = run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    assert (summary.complete, list(summary.undone), summary.count) == (False, ["00001"], 3)
    assert "FileNotFoundError" in summary.stats["losses"][0]["what"]
    assert "00001.tar" in summary.report.read_text(encoding="utf-8")
    held.rename(second)
    assert run_capfilt(two_tars, tmp_path / "out", model, model, OPTIONS).complete


def test_shards_behind_one_that_is_not_there(
    tmp_path: Path, two_tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two_tars / "00000.tar").unlink()
    command = ["capfilt", f"{two_tars}/{{00000..00001}}.tar", "--output", str(tmp_path / "out")]
    models = ["--captioner", "scenes", "--filter", "scenes", "--device", "cpu"]
    assert main([*command, *models]) == 1
    told = capsys.readouterr()
    assert "3 of 3 pictures read" in told.err and "1 left undone: 00000." in told.err
    assert told.out.strip().endswith("report.html")
    (two_tars / "00001.tar").unlink()
    command[3] = str(tmp_path / "nothing")
    assert main([*command, *models]) == 1
    assert "error: shard 00000 of" in capsys.readouterr().err


def test_a_network_that_is_gone_leaves_the_shard_undone(tmp_path: Path, stub: Any) -> None:
    manifest = tmp_path / "web.json"
    manifest.write_text('[{"url": "memory://gone/a.jpg"}, {"url": "memory://gone/b.jpg"}]')
    model = stub()
    with pytest.raises(StageFailed, match=r"no picture of shard 00000 could be read.*b\.jpg"):
        run_capfilt(manifest, tmp_path / "out", model, model, OPTIONS)
    assert committed(tmp_path / "out") == []
    import fsspec

    with fsspec.open("memory://gone/a.jpg", "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    summary = run_capfilt(manifest, tmp_path / "out", model, model, OPTIONS)
    assert (summary.count, summary.successes) == (2, 1)  # one dead link is a row


def test_a_wrong_image_root_is_no_result(tmp_path: Path, source: Path, stub: Any) -> None:
    manifest, model = tmp_path / "web.json", stub()
    names = [path.name for path in sorted(source.glob("*_*.png"))]
    manifest.write_text(json.dumps([{"image": name} for name in names]))
    for options in (OPTIONS, replace(OPTIONS, shard_size=99)):
        with pytest.raises(StageFailed, match="no picture of shard .* could be read.*FileNotFound"):
            run_capfilt(manifest, tmp_path / "out", model, model, replace(options, overwrite=True))
    rooted = replace(OPTIONS, shard_size=99, image_root=source)
    assert run_capfilt(manifest, tmp_path / "out", model, model, rooted).successes == len(names)


def test_a_last_shard_of_dead_links_costs_that_shard(
    tmp_path: Path, source: Path, stub: Any
) -> None:
    manifest, model = source / "web.json", stub()
    manifest.write_text(json.dumps([{"image": n} for n in ("a_good.png", "b_bad.png", "none.png")]))
    summary = run_capfilt(manifest, tmp_path / "out", model, model, OPTIONS)
    assert (summary.successes, list(summary.undone), summary.complete) == (2, ["00001"], False)
    assert "none.png" in summary.report.read_text(encoding="utf-8")


def test_changed_settings_are_refused(source: Path, tmp_path: Path, stub: Any) -> None:
    model = stub()
    run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    other = stub()
    other.sha256 = "1" * 64
    for models, changes, message in (
        ((model, model), {"threshold": 0.6}, "threshold was 0.5 and is 0.6"),
        ((model, model), {"prompt": "a "}, "prompt was 'a picture of ' and is 'a '"),
        ((model, model), {"batch_size": 3}, "batch_size was 2 and is 3"),
        ((model, other), {}, r"filters\[0\].sha256 was '0+' and is '1+'\. Ask"),
    ):
        with pytest.raises(ValueError, match=message):
            run_capfilt(source, tmp_path / "out", *models, replace(OPTIONS, **changes))
    (source / "more.png").write_bytes((source / "a_good.png").read_bytes())
    with pytest.raises(ValueError, match="belongs to another run: source was .* called '"):
        run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    free = replace(OPTIONS, overwrite=True, threshold=0.6)
    assert run_capfilt(source, tmp_path / "out", model, model, free).count == 8


def test_a_second_run_is_told_who_holds_the_shards(source: Path, tmp_path: Path, stub: Any) -> None:
    """While a picture of the first is being written, another process's worth of run comes by."""
    model, seen = stub(), []

    def meanwhile(_: int) -> None:
        if not seen:
            seen.append(run_capfilt(source, tmp_path / "out", stub(), stub(), one_shard))

    one_shard = replace(OPTIONS, shard_size=7)
    summary = run_capfilt(source, tmp_path / "out", model, stub(), one_shard, meanwhile)
    (second,) = seen
    assert not second.complete and second.done == 0 and summary.complete
    assert list(second.held) == ["00000"] and f"-{os.getpid()}-" in second.held["00000"]
    overwriting = replace(one_shard, overwrite=True)

    def overwrite(_: int) -> None:
        with pytest.raises(ValueError, match="is being written by"):
            run_capfilt(source, tmp_path / "b", stub(), stub(), overwriting)

    run_capfilt(source, tmp_path / "b", stub(), stub(), one_shard, overwrite)


def test_claims_of_the_dead_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, where no lock tells: by the age of the last sign of life."""
    monkeypatch.setattr(ledger, "_host", lambda: "another machine")
    with Ledger(tmp_path, {"a": 1}) as theirs:
        assert list(theirs.take([0])) == ["00000"]
        monkeypatch.undo()
        with Ledger(tmp_path, {"a": 1}) as ours:
            assert list(ours.take([0, 1])) == ["00001"]
            assert ours.held_by_others() == {"00000": theirs.name}
            long_ago = time.time() - 2 * ledger.STALE
            os.utime(theirs.scratch / "alive", (long_ago, long_ago))
            assert ours.held_by_others() == {}
            assert list(ours.take([0])) == ["00000"]
            assert ours.holds("00000") and not theirs.holds("00000")
            ours.drop("00000")


def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with Ledger(tmp_path, {"a": 1}) as dying:
            next(dying.take([0]))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list((tmp_path / ".work").iterdir())) == 2
    with Ledger(tmp_path, {"a": 1}) as ours:
        assert list(ours.take([0])) == ["00000"] and ours.holds("00000")
        assert len(list((tmp_path / ".work").iterdir())) == 2  # claims and our own
        ours.drop("00000")
    assert not (tmp_path / ".work").exists()


def test_claims_have_a_name_from_the_first_moment_and_end_with_their_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim without a name would keep its shard from all for two minutes."""
    with Ledger(tmp_path, {"a": 1}) as ours:
        claims, link, seen = tmp_path / ".work/claims", os.link, []

        def look(draft: Any, target: Any) -> None:
            assert list(claims.iterdir()) == []
            link(draft, target)
            seen.append(Path(target).read_text())

        monkeypatch.setattr(os, "link", look)
        assert list(ours.take([0])) == ["00000"] and seen == [ours.name]
        ours.drop("00000")
        monkeypatch.undo()
        (claims / "00000.1").write_text("one that was killed after its mark")
        (tmp_path / "00000_stats.json").write_text("{}")
    assert claims.exists()
    with Ledger(tmp_path, {"a": 1}):
        assert list(claims.iterdir()) == []
    assert not (tmp_path / ".work").exists()


def test_sigterm_finishes_the_batch_and_exits_with_143(
    source: Path, tmp_path: Path, stub: Any, clean: Any
) -> None:
    model, done = stub(), []

    def terminate(number: int) -> None:
        done.append(number)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        run_capfilt(source, tmp_path / "out", model, model, OPTIONS, terminate)
    assert stopped.value.code == 143 and len(done) == 2
    assert committed(tmp_path / "out") == ["00000", "00001"]
    assert not (tmp_path / "out/.work").exists()
    goes_on(source, tmp_path / "out", stub, clean)


def test_sigterm_does_not_wait_for_a_shard_that_does_not_come(
    source: Path, tmp_path: Path, stub: Any
) -> None:
    web, model, asked = open_web(source, 2), stub(), threading.Event()
    opening = web.open

    def hang(shard: int) -> Any:
        if shard == 2:
            asked.set()
            threading.Event().wait()
        return opening(shard)

    def terminate() -> None:
        asked.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    web.open = hang  # type: ignore[method-assign]
    threading.Thread(target=terminate).start()
    with pytest.raises(SystemExit) as stopped:
        run_capfilt(web, tmp_path / "out", model, model, OPTIONS)
    assert stopped.value.code == 143 and not (tmp_path / "out/.work").exists()


def test_a_disk_that_no_longer_answers(
    two_tars: Path, tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a row for every picture that could not be read, which would be there for good."""
    web, model = open_web(two_tars), stub()
    opening = web.open

    def stale(shard: int) -> Any:
        opened = opening(shard)
        if shard == 1:
            monkeypatch.setattr(opened, "_read", fail)
        return opened

    def fail(*_: Any) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    web.open = stale  # type: ignore[method-assign]
    with pytest.raises(StageFailed, match="stage 'read' failed at shard 00001.*Stale file"):
        run_capfilt(web, tmp_path / "out", model, model, OPTIONS)
    assert committed(tmp_path / "out") in ([], ["00000"])


def test_restart_reads_nothing_of_what_is_done(
    source: Path, tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are listed; no mark, table or picture is opened, and no model asked."""
    model = stub()
    run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    for path in (tmp_path / "out").glob("0*"):
        path.write_bytes(b"")  # whoever opened them would fail
    for path in source.rglob("*.png"):
        path.write_bytes(b"")
    seen = model.seen
    summary = run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    assert summary.complete and summary.count == 7 and model.seen == seen
