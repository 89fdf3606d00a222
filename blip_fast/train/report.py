"""The page that shows a training run: curves, recipe and what the model says of some pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from blip_fast.data.files import displayable
from blip_fast.data.pages import data_uri, page_template
from blip_fast.images import ImageOptions, read_picture
from blip_fast.train.curves import HEIGHT, WIDTH, Curve, curve
from blip_fast.train.watch import LOG

Show = Callable[[float], str]

_THUMBNAIL = 224  # pixels of the longer side


@dataclass(frozen=True)
class SampleCaption:
    """A picture with what a person says of it and what the model does.

    Attributes:
        image: a path or encoded bytes.
        error: why there is no caption; empty where there is one.
    """

    image: Path | bytes | str
    key: str
    human: str
    model: str
    error: str = ""


@dataclass(frozen=True)
class Log:
    """The lines of a run's log.

    Attributes:
        steps: those written every few steps.
        damaged: numbers of the lines that are no JSON, the last one aside: a run that was killed
            may have written half of it.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)


def read_log(run: Path) -> Log:
    """The log of a run's folder.

    Raises:
        ValueError: where there is none, or no line of it is of a step.
    """
    path = run / LOG
    if not path.is_file():
        raise ValueError(f"{displayable(run)} has no {LOG}, so it is no training run's folder")
    log = Log()
    lines = path.read_bytes().splitlines()
    steps: dict[int, Any] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            is_step = isinstance(values["step"], int)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                log.damaged.append(number)
            continue
        if is_step and "loss" in values:
            steps[values["step"]] = values  # a step that was repeated counts once
    log.steps.extend(steps[step] for step in sorted(steps))
    if not log.steps:
        raise ValueError(
            f"{displayable(path)} has no line of a step yet; the recipe's log_steps says how "
            "often one is written"
        )
    return log


def render_report(
    run: Path, samples: Sequence[SampleCaption] = (), why_no_samples: str = ""
) -> str:
    """The page as text; every text in it that came from outside is escaped.

    Args:
        samples: pictures and captions to show.
        why_no_samples: where there are none, the reason.

    Raises:
        ValueError: where the folder holds no run that has logged a step.
    """
    log = read_log(run)
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        name=displayable(run.resolve().name),
        log=log,
        last=log.steps[-1],
        tiles=list(_tiles(log.steps)),
        groups=[(title, _curves(log.steps, shown)) for title, shown in _GROUPS],
        plot=(WIDTH, HEIGHT),
        recipe=_recipe(run),
        samples=[(sample, *_picture(sample.image)) for sample in samples],
        why_no_samples=why_no_samples,
    )


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _loss(name: str) -> str:
    part = name.removeprefix("loss_")
    return {"loss": "All losses", "nlvr": "NLVR2"}.get(part, part.upper())


# What is shown of a line: its key (a trailing _ stands for any that begin so), name, and how.
_EXACT = ("lr", "peak_memory_bytes")  # nothing to smooth
_Shown = tuple[tuple[str, str, Show], ...]
_GROUPS: tuple[tuple[str, _Shown], ...] = (
    ("Losses", (("loss", "", _plain), ("loss_", "", _plain))),
    (
        "Optimizer",
        (
            ("lr", "Learning rate", lambda value: f"{value:.3g}"),
            ("grad_norm", "Norm of the gradient", _plain),
        ),
    ),
    (
        "Speed",
        (
            ("images_per_second", "Images/s", _plain),
            ("data_wait", "Waiting for data", _percent),
            ("mfu", "Model FLOPs utilisation", _percent),
            ("peak_memory_bytes", "Peak memory, GB", lambda value: f"{value / 1e9:.3g}"),
        ),
    ),
)


def _curves(lines: Sequence[Mapping[str, Any]], shown: _Shown) -> list[Curve]:
    curves = []
    for key, name, show in shown:
        for found in _keys(lines, key):
            series = [(line["step"], line[found]) for line in lines if _is_number(line.get(found))]
            if series:
                steps, values = zip(*series, strict=True)
                noisy = found not in _EXACT
                curves.append(curve(name or _loss(found), steps, values, show, noisy))
    return curves


def _keys(lines: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    if not key.endswith("_"):
        return [key]
    return list(dict.fromkeys(name for line in lines for name in line if name.startswith(key)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tiles(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Title, value and remark of what is to be seen at a glance."""
    last = lines[-1]
    tiles = [("Steps", f"{last['step']:,}", f"epoch {last.get('epoch', 0)}")]
    for drawn in _curves(lines, _GROUPS[0][1]):
        tiles.append((drawn.name, drawn.last, f"from {drawn.first}"))
    for key, name, show in (
        ("images_per_second", "Images/s", _plain),
        ("data_wait", "Waiting for data", _percent),
    ):
        values = sorted(line[key] for line in lines if _is_number(line.get(key)))
        if values:
            tiles.append((name, show(values[len(values) // 2]), "median"))
    if last.get("skipped"):
        tiles.append(("Bad samples", f"{last['skipped']:,}", "skipped and replaced"))
    return tiles


def _recipe(run: Path) -> dict[str, str]:
    """The settings of a run as text; none where its recipe is gone."""
    try:
        values = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {str(key): _setting(value) for key, value in values.items()}


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {size}" for key, size in value.items())
    return "" if value is None else str(value)


def _picture(image: Path | bytes | str) -> tuple[str, int, int]:
    """A thumbnail in the page, its width and height; an empty address where it cannot be read."""
    picture = read_picture(image, ImageOptions(size=_THUMBNAIL))
    if picture.pixels is None or not picture.width or not picture.height:
        return "", _THUMBNAIL, _THUMBNAIL
    # Pictures are read as squares; here they get their shape back, a panorama some height.
    ratio = min(max(picture.width / picture.height, 0.2), 5.0)
    size = (round(_THUMBNAIL * min(ratio, 1)), round(_THUMBNAIL / max(ratio, 1)))
    return data_uri(picture.pixels, size), *size
