from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import blip_fast


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_caption_beside_every_picture(run: Any, pictures: Path, scenes: Any) -> None:
    code, out, err = run("caption", pictures)
    assert code == 0 and out == ""
    expected = scenes.caption([pictures / "a.png", pictures / "sub/猫.jpg"]).texts
    assert read(pictures / "a.txt") == expected[0] + "\n"
    assert read(pictures / "sub/猫.txt") == expected[1] + "\n"
    assert not (pictures / "broken.txt").exists()
    assert "2 of 3 pictures captioned, 1 failed (failed_to_decode 1)" in err
    assert "images/s" in err and f"{pictures / 'broken.jpg'}: failed_to_decode: " in err


def test_json_has_results_and_failures_and_writes_nothing(run: Any, pictures: Path) -> None:
    before = sorted(pictures.rglob("*"))
    code, out, _ = run("caption", pictures, "--json", "--num-captions", 2)
    first, failed, last = objects(out)
    assert code == 0 and sorted(pictures.rglob("*")) == before
    assert set(first) == {
        "path", "caption", "log_probability", "truncated", "degenerate", "captions"
    }  # fmt: skip
    assert len(first["captions"]) == 2 and first["caption"] == first["captions"][0]["caption"]
    assert failed["path"].endswith("broken.jpg") and failed["error"]
    assert failed["status"] == "failed_to_decode"
    assert last["path"].endswith("猫.jpg")


def test_existing_captions_are_skipped_before_loading(
    run: Any, pictures: Path, loads: list
) -> None:
    for name in ("a", "broken", "sub/猫"):
        (pictures / f"{name}.txt").write_text("by hand", encoding="utf-8")
    code, _, err = run("caption", pictures)
    assert code == 0 and loads == [] and "3 skipped" in err
    assert read(pictures / "a.txt") == "by hand"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("overwrite", "{new}"),
        ("ignore", "{new}"),
        ("append", "by hand, {new}"),
        ("prepend", "{new}, by hand"),
        ("skip", "by hand"),
        ("copy", "by hand"),
    ],
)
def test_existing(run: Any, pictures: Path, scenes: Any, existing: str, expected: str) -> None:
    picture, sidecar = pictures / "a.png", pictures / "a.txt"
    sidecar.write_text("by hand\n", encoding="utf-8")
    assert run("caption", picture, "--existing", existing)[0] == 0
    (new,) = scenes.caption([picture]).texts
    assert read(sidecar).strip() == expected.format(new=new)


def test_a_blank_caption_counts_as_none(run: Any, pictures: Path) -> None:
    (pictures / "a.txt").write_text("\n")
    run("caption", pictures / "a.png")
    assert read(pictures / "a.txt").strip()


def test_captions_of_another_encoding_are_not_touched(run: Any, pictures: Path) -> None:
    sidecar = pictures / "a.txt"
    sidecar.write_bytes(b"caf\xe9")
    code, _, err = run("caption", pictures / "a.png", "--existing", "append")
    assert code == 1 and "failed_to_read" in err and "not UTF-8" in err
    assert "1 skipped" in run("caption", pictures / "a.png")[2]
    assert sidecar.read_bytes() == b"caf\xe9"


def test_dry_run_prints_and_writes_nothing(run: Any, pictures: Path, scenes: Any) -> None:
    before = sorted(pictures.rglob("*"))
    code, out, _ = run("caption", pictures, "--dry-run", "--output", pictures / "new")
    assert code == 0 and sorted(pictures.rglob("*")) == before
    (caption,) = scenes.caption([pictures / "a.png"]).texts
    assert out.splitlines()[0] == f"{pictures / 'a.png'}\t{caption}"


def test_output_folder_mirrors_the_source(run: Any, pictures: Path, tmp_path: Path) -> None:
    run("caption", pictures, "--output", tmp_path / "out", "--caption-extension", ".caption")
    written = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")]
    assert sorted(map(str, written)) == ["a.caption", "sub/猫.caption"]
    assert not list(pictures.rglob("*.caption"))


def test_prefix_and_postfix(run: Any, pictures: Path, scenes: Any) -> None:
    run("caption", pictures / "a.png", "--prefix", "zwx dog, ", "--postfix", ", film")
    (caption,) = scenes.caption([pictures / "a.png"]).texts
    assert read(pictures / "a.txt") == f"zwx dog, {caption}, film\n"


def test_two_pictures_with_one_stem_are_refused(run: Any, pictures: Path, loads: list) -> None:
    Image.new("RGB", (8, 8)).save(pictures / "a.jpg")
    code, _, err = run("caption", pictures)
    assert code == 1 and loads == []
    assert str(pictures / "a.jpg") in err and str(pictures / "a.png") in err
    assert run("caption", pictures, "--json")[0] == 0


def test_urls_need_a_place_for_their_caption(run: Any, loads: list, tmp_path: Path) -> None:
    code, _, err = run("caption", "https://example.org/a.jpg")
    assert code == 1 and "--output" in err and loads == []


def test_a_url_is_read_and_named_by_its_last_part(run: Any, pictures: Path, tmp_path: Path) -> None:
    url = f"file://{pictures}/a.png"
    assert run("caption", url, "--output", tmp_path / "out")[0] == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.txt"]


def test_nothing_worked(run: Any, pictures: Path) -> None:
    code, _, err = run("caption", pictures / "broken.jpg", pictures / "gone.jpg")
    assert code == 1
    assert "0 of 2 pictures captioned" in err
    assert "failed_to_decode 1, failed_to_read 1" in err


def test_many_failures_are_counted(run: Any, tmp_path: Path) -> None:
    _, _, err = run("caption", *(tmp_path / f"{n}.jpg" for n in range(13)))
    assert err.count(": failed_to_read: ") == 10 and "and 3 more" in err


def test_samples_do_not_depend_on_batches(run: Any, pictures: Path) -> None:
    flags = ("--json", "--top-p", 0.9, "--num-captions", 3)
    together = objects(run("caption", pictures, *flags)[1])
    alone = objects(run("caption", pictures, *flags, "--batch-size", 1)[1])
    texts = [[c["caption"] for c in one.get("captions", [])] for one in together]
    assert texts == [[c["caption"] for c in one.get("captions", [])] for one in alone]
    other = objects(run("caption", pictures, *flags, "--seed", 1)[1])
    assert [c["caption"] for c in other[0]["captions"]] != texts[0]


class Recorder:
    """A model that remembers how it was asked."""

    def __init__(self, scenes: Any) -> None:
        self.scenes, self.asked = scenes, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scenes, name)

    def caption_stream(self, images: Any, prompt: str, **settings: Any) -> Any:
        self.asked = settings
        for outcome in self.scenes.caption_stream(images, prompt, **settings):
            blank = tuple(replace(text, text=" ") for text in outcome.texts)
            yield outcome if prompt else replace(outcome, texts=blank)


@pytest.fixture
def recorder(run: Any, scenes: Any, monkeypatch: pytest.MonkeyPatch, loads: list) -> Recorder:
    model = Recorder(scenes)

    def load(source: str, **_: Any) -> Recorder:
        loads.append({"source": source})
        return model

    monkeypatch.setattr(blip_fast, "load", load)
    return model


def test_an_old_command_runs_unchanged(
    run: Any, pictures: Path, recorder: Recorder, loads: list
) -> None:
    old = (
        "--batch_size 8 --beam_search --num_beams 2 --top_p 0.9 --max_length 20 --min_length 5 "
        "--caption_extension .caption --caption_weights weights.pth "
        "--max_data_loader_n_workers 2 --recursive"
    )
    assert run("caption", pictures, *old.split())[0] == 0
    assert loads == [{"source": "weights.pth"}]
    wanted = {"top_p": None, "num_beams": 2, "max_length": 20, "min_length": 5}
    assert wanted.items() <= recorder.asked.items()
    assert (pictures / "sub/猫.caption").is_file()


def test_top_p_without_beams_samples(run: Any, pictures: Path, recorder: Recorder) -> None:
    run("caption", pictures, "--top_p", "0.8")
    assert recorder.asked["top_p"] == 0.8


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--top-k", 7), {"top_p": 1.0, "top_k": 7}),
        (("--top-k", 0, "--top-p", 0.8), {"top_p": 0.8, "top_k": 0}),
        (("--top-p", 0.8, "--temperature", 0.5), {"top_p": 0.8, "temperature": 0.5}),
        (("--top-k", 7, "--beam-search"), {"top_p": None}),
        (("--length-penalty", 2.0), {"top_p": None, "length_penalty": 2.0}),
    ],
)
def test_flags_of_sampling_and_beams(
    run: Any, pictures: Path, recorder: Recorder, flags: tuple[Any, ...], wanted: dict[str, Any]
) -> None:
    run("caption", pictures, *flags)
    assert wanted.items() <= recorder.asked.items()


def test_the_likeliest_word_alone_is_greedy(run: Any, pictures: Path) -> None:
    flags = ("--json", "--repetition-penalty", 1)
    sampled = run("caption", pictures, "--top-k", 1, *flags)[1]
    assert sampled == run("caption", pictures, "--num-beams", 1, *flags)[1]
    assert "caption" in sampled


def test_a_temperature_without_sampling_is_refused(run: Any, pictures: Path, loads: list) -> None:
    code, _, error = run("caption", pictures, "--temperature", 0.5)
    assert code == 1 and "give --top-p or --top-k" in error and not loads


def test_empty_captions_are_failures(run: Any, pictures: Path, recorder: Recorder) -> None:
    code, _, err = run("caption", pictures / "a.png", "--prompt", "")
    assert code == 1 and "empty_text" in err
    assert not (pictures / "a.txt").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(run: Any, pictures: Path, loads: list) -> None:
    pictures.chmod(0o500)
    try:
        code, _, err = run("caption", pictures)
    finally:
        pictures.chmod(0o700)
    assert code == 1 and "cannot write captions" in err and loads == []


def test_forbidden_words_are_not_written(run: Any, pictures: Path, scenes: Any) -> None:
    picture, sidecar = pictures / "a.png", pictures / "a.txt"
    first, second, *_ = scenes.caption([picture]).texts[0].split()
    for flags in (
        ("--forbid", first, "--forbid", second),
        ("--fail_phrases", f"{first}, {second}"),
    ):
        assert run("caption", picture, "--existing", "overwrite", *flags)[0] == 0
        assert not {first, second} & set(read(sidecar).split()), flags


def test_slots_and_early_stopping(run: Any, pictures: Path, scenes: Any) -> None:
    flags = ("--slots", 1, "--early-stopping", "true", "--repetition-penalty", 1.5)
    assert run("caption", pictures / "a.png", *flags)[0] == 0
    expected = scenes.caption([pictures / "a.png"], early_stopping=True, repetition_penalty=1.5)
    assert read(pictures / "a.txt").strip() == expected.texts[0]
    code, _, err = run("caption", pictures / "a.png", "--slots", 0, "--existing", "overwrite")
    assert code == 1 and "slots is 0" in err
