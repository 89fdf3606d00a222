"""A view of a run is what the run would have been."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from capfilt_stub import StubBlip

from blip_fast.capfilt import CapFiltOptions, run_capfilt
from blip_fast.capfilt import view as view_of
from blip_fast.capfilt.rows import read_rows
from blip_fast.capfilt.view import Rule, write_view
from blip_fast.cli import main
from blip_fast.data import open_source
from blip_fast.data.tar import scan
from blip_fast.tasks.captions import Captions


class Varied(StubBlip):
    """Every text has a probability of its own."""

    @staticmethod
    def _probability(text: str) -> float:
        return (zlib.crc32(text.encode()) % 99 + 0.5) / 100


def run(source: Path, output: Path, threshold: float) -> Path:
    model: Any = Varied()
    options = CapFiltOptions(threshold=threshold, num_captions=3, batch_size=2, shard_size=4)
    run_capfilt(source, output, model, model, options)
    return output


def shards(folder: Path, *ends: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name.endswith(ends)}


@pytest.fixture(params=["folder", "tars"])
def some(request: pytest.FixtureRequest, source: Path, two_tars: Path) -> Path:
    return source if request.param == "folder" else two_tars


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8])
def test_it_is_the_run_with_that_threshold(some: Path, tmp_path: Path, threshold: float) -> None:
    """Byte for byte, tars included: pictures that were not kept before come from the source."""
    first = run(some, tmp_path / "first", 0.5)
    wanted = run(some, tmp_path / "wanted", threshold)
    write_view(first, tmp_path / "view", Rule(threshold), tars=True)
    assert shards(tmp_path / "view", ".tar") == shards(wanted, ".tar")
    assert list(read_rows(tmp_path / "view")) == list(read_rows(wanted))
    ours, theirs = (
        json.loads((folder / "totals.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "view", wanted)
    )
    for name in ("count", "successes", "pairs", "texts", "status_dict", "models"):
        assert ours[name] == theirs[name], name
    assert ours["settings"]["threshold"] == threshold and ours["gone"] == 0
    assert (tmp_path / "view/report.html").is_file()


def test_of_a_run_that_lacks_a_shard(two_tars: Path, tmp_path: Path) -> None:
    (two_tars / "00000.tar").unlink()
    first = run(Path(f"{two_tars}/{{00000..00001}}.tar"), tmp_path / "first", 0.5)
    stats = write_view(first, tmp_path / "view", Rule(0.5), tars=True)
    assert stats["count"] == 3
    assert shards(tmp_path / "view", ".tar") == shards(first, ".tar") != {}


def test_without_tars_the_source_is_not_needed(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "first", 0.9)
    source.rename(tmp_path / "gone")
    stats = write_view(first, tmp_path / "view", Rule(0.0))
    assert shards(tmp_path / "view", ".tar") == {} and stats["gone"] == 0
    kept = sum(c["kept"] for row in read_rows(tmp_path / "view") for c in row["candidates"])
    assert kept == stats["pairs"] > 0
    with pytest.raises(ValueError, match="which cannot be opened.*without tars"):
        write_view(first, tmp_path / "other", Rule(0.0), tars=True)
    assert not list((tmp_path / "other").glob("*_stats.json"))


def test_the_manifest_trains(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "first", 0.5)
    write_view(first, tmp_path / "view", Rule(0.2))
    opened = open_source(tmp_path / "view/kept.jsonl")
    shard = opened.open(0)
    pairs = {(str(shard[n].images[0]), shard[n].text) for n in range(len(shard))}
    wanted = {
        (row["path"], c["text"])
        for row in read_rows(tmp_path / "view")
        for c in row["candidates"]
        if c["kept"]
    }
    assert pairs == wanted and all(Path(path).is_file() for path, _ in pairs)


def test_pictures_within_shards_are_in_no_manifest(
    two_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(two_tars, tmp_path / "first", 0.5)
    command = ["tune", str(first), "--threshold", "0.2", "--output", str(tmp_path / "view")]
    assert main(command) == 0
    stats = json.loads((tmp_path / "view/totals.json").read_text(encoding="utf-8"))
    assert f"{stats['pairs']} pairs are not in kept.jsonl" in capsys.readouterr().err
    assert stats["listed"] == 0 and (tmp_path / "view/kept.jsonl").read_text() == ""
    assert main([*command[:-1], str(tmp_path / "shards"), "--tars"]) == 0
    assert "kept.jsonl" not in capsys.readouterr().err


def test_pictures_that_have_gone_are_counted(source: Path, tmp_path: Path) -> None:
    """One that was kept before is still in the run's shards; another is lost with its texts."""
    first = run(source, tmp_path / "first", 0.99)
    assert all(not scan(path).samples for path in first.glob("*.tar"))
    (source / "b_bad.png").unlink()
    (source / "b_bad.png").mkdir()  # in its place, so that the others keep their numbers
    stats = write_view(first, tmp_path / "view", Rule(0.0), tars=True)
    rows = {row["key"]: row for row in read_rows(tmp_path / "view")}
    texts = rows["b_bad.png"]["candidates"]
    assert stats["gone"] == len(texts) == 4 and not any(c["kept"] for c in texts)
    assert all(c["kept"] for c in rows["a_good.png"]["candidates"])
    samples = sum(len(scan(path).samples) for path in (tmp_path / "view").glob("*.tar"))
    assert samples == stats["pairs"]


def test_it_goes_on_where_it_was_stopped(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(source, tmp_path / "first", 0.5)
    write_view(first, tmp_path / "whole", Rule(0.3), tars=True)
    written: list[str] = []
    commit = view_of._Shard.write

    def stopped(self: Any, again: Any) -> int:
        if written:
            raise KeyboardInterrupt
        written.append(self._name)
        return commit(self, again)

    monkeypatch.setattr(view_of._Shard, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_view(first, tmp_path / "view", Rule(0.3), tars=True)
    assert not (tmp_path / "view/totals.json").exists()
    monkeypatch.setattr(view_of._Shard, "write", commit)
    done: list[int] = []
    write_view(first, tmp_path / "view", Rule(0.3), tars=True, progress=done.append)
    assert done == [3]  # of 7 pictures, 4 were done before
    ends = (".tar", ".parquet", ".jsonl")
    assert shards(tmp_path / "view", *ends) == shards(tmp_path / "whole", *ends)


def test_other_folders_are_not_replaced(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "first", 0.5)
    with pytest.raises(ValueError, match="is the run itself"):
        write_view(first, first, Rule(0.3))
    write_view(first, tmp_path / "view", Rule(0.3))
    with pytest.raises(ValueError, match=r"threshold was 0\.3 and is 0\.4"):
        write_view(first, tmp_path / "view", Rule(0.4))
    write_view(first, tmp_path / "view", Rule(0.4), overwrite=True)
    (first / "totals.json").unlink()
    with pytest.raises(ValueError, match="the run is not complete"):
        write_view(first, tmp_path / "third", Rule(0.3))


def test_a_view_of_a_view(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "first", 0.5)
    write_view(first, tmp_path / "a", Rule(0.8))
    write_view(tmp_path / "a", tmp_path / "b", Rule(0.5))
    assert list(read_rows(tmp_path / "b")) == list(read_rows(first))


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(source, tmp_path / "first", 0.5)
    argv = ["tune", str(first), "--threshold", "0.1", "--output", str(tmp_path / "view"), "--tars"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(f"{tmp_path / 'view/report.html'}\n")
    assert "web texts:" in captured.err and (tmp_path / "view/00000.tar").is_file()


class GoingRound(Varied):
    """The first caption of each picture repeats itself, and matches best."""

    def caption(self, memory: Any, prompt: str, **settings: Any) -> Captions:
        found = super().caption(memory, prompt, **settings)
        rows = tuple(
            (replace(row[0], text="red red red", degenerate=True), *row[1:]) for row in found
        )
        return replace(found, rows=rows)

    @staticmethod
    def _probability(text: str) -> float:
        return 0.99 if text == "red red red" else 0.6


def kept_texts(folder: Path) -> list[list[str]]:
    return [[c["text"] for c in row["candidates"] if c["kept"]] for row in read_rows(folder)]


def test_what_repeats_itself_is_not_kept_and_can_be(
    two_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = GoingRound()
    options = CapFiltOptions(num_captions=2, batch_size=2)
    summary = run_capfilt(two_tars, tmp_path / "sound", model, model, options)
    everything = replace(options, without=())
    run_capfilt(two_tars, tmp_path / "all", model, model, everything)
    assert summary.stats["texts"]["synthetic"]["degenerate"] == 6
    for sound, every in zip(
        kept_texts(tmp_path / "sound"), kept_texts(tmp_path / "all"), strict=True
    ):
        assert len(sound) == 2 and sound[1].startswith("grey")  # the web text and the sound one
        assert every == [sound[0], "red red red", sound[1]]
    for row in read_rows(tmp_path / "sound"):  # and the row says why
        (repeated,) = [c for c in row["candidates"] if c["degenerate"]]
        assert repeated["itm_probability"] == pytest.approx(0.99) and not repeated["kept"]
    page = (tmp_path / "sound/report.html").read_text(encoding="utf-8")
    assert "nothing that is degenerate" in page
    with pytest.raises(ValueError, match="other settings|another run"):
        run_capfilt(two_tars, tmp_path / "sound", model, model, everything)

    tune = ["tune", str(tmp_path / "sound"), "--threshold", "0.5", "--tars"]
    assert main([*tune, "--output", str(tmp_path / "same")]) == 0  # as the run has it
    assert shards(tmp_path / "same", ".tar") == shards(tmp_path / "sound", ".tar")
    assert main([*tune, "--output", str(tmp_path / "view"), "--without"]) == 0
    assert shards(tmp_path / "view", ".tar") == shards(tmp_path / "all", ".tar")
    again = ["tune", str(tmp_path / "all"), "--threshold", "0.5", "--tars", "--without"]
    assert main([*again, "degenerate", "--output", str(tmp_path / "back")]) == 0
    assert shards(tmp_path / "back", ".tar") == shards(tmp_path / "sound", ".tar")
    capsys.readouterr()


class BetterInTheEnd(Varied):
    """Of dark pictures the first caption goes round in circles, then all do, then none."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[int] = []

    def caption(self, memory: Any, prompt: str, **settings: Any) -> Captions:
        found = super().caption(memory, prompt, **settings)
        self.turns.append(len(memory))
        if len(self.turns) > 2:
            return found
        bad = 1 if len(self.turns) == 1 else 2
        rows = tuple(
            tuple(replace(t, degenerate=value < 100 and n < bad) for n, t in enumerate(row))
            for row, value in zip(found, memory, strict=True)
        )
        return replace(found, rows=rows)


def test_what_repeats_itself_is_sampled_anew(source: Path, tmp_path: Path) -> None:
    options = CapFiltOptions(num_captions=2, resample=5, batch_size=7)
    model: Any = BetterInTheEnd()
    summary = run_capfilt(source, tmp_path / "out", model, model, options)
    assert model.turns == [6, 3, 3]  # of six pictures the three dark ones, as often as it takes
    assert summary.stats["texts"]["synthetic"]["degenerate"] == 0
    plain: Any = Varied()
    run_capfilt(source, tmp_path / "plain", plain, plain, replace(options, resample=0))
    pairs = zip(read_rows(tmp_path / "out"), read_rows(tmp_path / "plain"), strict=True)
    for ours, other in pairs:
        texts, others = (
            [c["text"] for c in row["candidates"] if c["source"] == "synthetic"]
            for row in (ours, other)
        )
        dark = ours["status"] == "success" and int(texts[0].split()[1]) < 100
        assert texts[1:] == others[1:] and (texts[:1] != others[:1]) == dark
    limited: Any = BetterInTheEnd()
    summary = run_capfilt(source, tmp_path / "once", limited, limited, replace(options, resample=1))
    assert limited.turns == [6, 3]
    assert summary.stats["texts"]["synthetic"]["degenerate"] == 3
    with pytest.raises(ValueError, match="resample 1 with num_beams 3"):
        CapFiltOptions(resample=1, num_beams=3)


def test_a_flag_that_no_text_has_is_refused() -> None:
    for make in (lambda: CapFiltOptions(without=("ugly",)), lambda: Rule(0.5, None, ("ugly",))):
        with pytest.raises(ValueError, match="'ugly'; it must be of degenerate, truncated"):
            make()
