"""A card as text: one row for each number, one column for each group of scenes."""

from __future__ import annotations

from collections.abc import Callable

from blip_fast.scenes.claims import KINDS as CLAIMS
from blip_fast.scenes.language import SPOILED
from blip_fast.scenes.questions import KINDS
from blip_fast.scenes.score import RERANKED, Card, Group, Share

_Cell = Callable[[Group], str]


def table(card: Card) -> str:
    """Markdown, in fixed columns; rows of which no group has a value are left out."""
    head = ["", *(f"{g.split}, {g.things}" for g in card.groups)]
    rows = [[name, *(cell(g) for g in card.groups)] for name, cell in _rows()]
    rows = [row for row in rows if any(row[1:])]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in (head, rule, *rows)
    ]
    scenes = card.groups[0].scenes
    about = (
        f"{card.model} in {card.dtype}; {scenes} scenes a column, seed {card.seed}. Columns: "
        "held-out scenes, number of things; in `unseen` all pairs of colour and shape are new. "
        f"R@1 among {card.among}, text to image / image to text; ITM ranks the {RERANKED} best of "
        "ITC. What cannot be told apart by its caption counts as right."
    )
    return "\n".join([about, "", *lines])


def _rows() -> list[tuple[str, _Cell]]:
    rows: list[tuple[str, _Cell]] = [
        ("captions true", lambda g: _share(g.captions)),
        ("captions understood", lambda g: _share(g.understood)),
    ]
    rows += [(f"  {kind} right (claims)", _claims(kind)) for kind in CLAIMS]
    rows += [
        ("ITM AUC, other picture", lambda g: _auc(g.itm_easy)),
        ("ITM AUC, one attribute", lambda g: _auc(g.itm_hard)),
    ]
    rows += [(f"  {kind}", _kind(kind)) for kind in SPOILED]
    rows += [
        ("R@1, ITC", lambda g: _both(g.itc_recall)),
        ("R@1, ITM", lambda g: _both(g.itm_recall)),
    ]
    return rows + [(f"VQA {kind} (majority)", _answered(kind)) for kind in KINDS]


def _claims(kind: str) -> _Cell:
    def cell(group: Group) -> str:
        share = group.attributes.get(kind)
        return "" if share is None else f"{_percent(share.value)} ({share.number})"

    return cell


def _kind(kind: str) -> _Cell:
    return lambda group: _auc(group.itm_kinds.get(kind))


def _answered(kind: str) -> _Cell:
    def cell(group: Group) -> str:
        found = group.answers.get(kind)
        return "" if found is None else f"{_percent(found.accuracy)} ({_percent(found.majority)})"

    return cell


def _share(share: Share | None) -> str:
    return "" if share is None else _percent(share.value)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _auc(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _both(values: tuple[float, float] | None) -> str:
    return "" if values is None else " / ".join(_percent(value) for value in values)
