from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from blip_fast.cli import main, program
from blip_fast.cli.common import modern_spelling


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for verb in ("caption", "match", "answer", "embed", "capfilt", "convert", "info", "demo"):
        assert f"  {verb} " in out


@pytest.mark.parametrize(
    "argv",
    [[], ["caption"], ["paint"], ["caption", "x", "--no-such-flag"], ["answer", "x"]],
    ids=" ".join,
)
def test_usage_errors_are_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


def test_errors_are_one_line(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("there is no checkpoint 'x'; 'scenes' is in the package")

    monkeypatch.setattr("blip_fast.load", refuse)
    code, out, err = run("caption", tmp_path / "a.png", "--model", "x", "--json")
    assert code == 1 and out == ""
    assert err == "blip-fast: error: there is no checkpoint 'x'; 'scenes' is in the package\n"


def test_an_interrupted_command_does_not_wait_for_its_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's own end would take objects away from under a thread in the middle of a batch."""

    class Gone(BaseException):
        pass

    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    def leave(code: int) -> None:
        raise Gone(code)

    monkeypatch.setattr("blip_fast.cli.info.run", interrupt)
    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr("sys.argv", ["blip-fast", "info"])
    with pytest.raises(Gone, match="130"):
        program()
    assert capsys.readouterr().err == "blip-fast: interrupted\n"


def test_no_pictures_is_an_error_before_loading(run: Any, loads: list, tmp_path: Path) -> None:
    for verb, *more in (("caption",), ("match",), ("answer", "--question", "what?")):
        code, _, err = run(verb, tmp_path, *more)
        assert code == 1 and "there are no pictures in" in err
    assert loads == []


def test_warnings_are_one_line(
    run: Any, pictures: Path, scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        warnings.warn("something is odd", stacklevel=1)
        return scenes

    monkeypatch.setattr("blip_fast.load", load)
    code, _, err = run("caption", pictures / "a.png", "--json")
    assert code == 0 and "blip-fast: warning: something is odd\n" in err


def test_underscores_in_flags_and_not_in_values() -> None:
    argv = ["caption", "my_dir", "--batch_size", "8", "--prefix=a_b", "-x_y", "--", "--c_d"]
    assert modern_spelling(argv) == [
        "caption", "my_dir", "--batch-size", "8", "--prefix=a_b", "-x_y", "--", "--c_d",
    ]  # fmt: skip


def test_loading_arguments_reach_the_model(run: Any, loads: list, pictures: Path) -> None:
    flags = (
        "--device cpu --dtype bfloat16 --quantize int8 --image-size 96 --compat transformers "
        "--vocabulary v.txt --decode pillow --max-pixels 900"
    )
    run("caption", pictures / "a.png", "--json", "--model", "m", *flags.split())
    assert loads == [
        {
            "source": "m",
            "device": "cpu",
            "dtype": "bfloat16",
            "quantize": "int8",
            "image_size": 96,
            "compat": "transformers",
            "vocabulary": Path("v.txt"),
            "decoder": "pillow",
            "max_pixels": 900,
        }
    ]


def test_module_runs_and_output_is_utf8_in_any_locale(pictures: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blip_fast", "caption", "--json", "--model", "scenes", pictures],
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", **_paths()},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "猫.jpg" in done.stdout.decode("utf-8")


def test_a_reader_that_has_enough_is_no_error(pictures: Path) -> None:
    command = [sys.executable, "-m", "blip_fast", "match", "--model", "scenes", "--text", "a cat"]
    with subprocess.Popen(
        [*command, pictures], env=_paths(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert "Traceback" not in err


def _paths() -> dict[str, str]:
    """What a process of its own needs to find the package, installed or not."""
    import os

    import blip_fast

    root = str(Path(blip_fast.__file__).parents[1])
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root}
