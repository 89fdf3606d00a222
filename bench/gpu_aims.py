"""What the rooms are meant to reach on an H200, beside what the races of a run measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

OURS = "blip_fast"
Row = dict[str, str]


class Rows:
    """The rows of a run of the races, asked by case and contender."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = [row for row in rows if row.get("median ms")]

    def value(self, case: str, column: str, contender: str = OURS) -> float:
        """A number of the one row whose case and contender begin so.

        Raises:
            LookupError: where there is none, or it has no such number.
        """
        for row in self._rows:
            named = row["case"].startswith(case) and row["contender"].startswith(contender)
            if named and row.get(column):
                return float(row[column])
        raise LookupError(f"no {column} of {contender} in {case}")

    def lead(self, case: str, *contenders: str) -> float:
        """How many times as fast as the fastest of some contenders ours is; of all if none."""
        others = [
            float(row["ratio"])
            for row in self._rows
            if row["case"].startswith(case) and row["contender"] != OURS
            if not contenders or row["contender"].startswith(contenders)
        ]
        if not others:
            raise LookupError(f"no peer ran in {case}")
        return min(others)


@dataclass(frozen=True)
class Aim:
    """What is measured, from the rows, and how large or small it is meant to be."""

    name: str
    measure: Callable[[Rows], float]
    wanted: float
    at_most: bool = False

    def row(self, rows: Rows) -> Row:
        """A row of the results: the figure, and whether it is as wanted."""
        wanted = f"{'at most' if self.at_most else 'at least'} {self.wanted:g}"
        try:
            value = self.measure(rows)
        except LookupError as error:
            return {"case": f"aim: {self.name}", "note": f"not measured: {error}; {wanted}"}
        met = value <= self.wanted if self.at_most else value >= self.wanted
        note = f"{'met' if met else 'NOT MET'}: {wanted}"
        return {"case": f"aim: {self.name}", "rate": f"{value:.3g}", "note": note}


FLASH = ("torch SDPA, flash", "torch SDPA, cuDNN", "flash-attn")


def aims(tokens: int) -> Iterator[Aim]:
    """The aims, attention's at images of so many tokens."""
    for how in ("", " with gradient"):
        case = f"attention{how}, {tokens} tokens"
        yield Aim(
            f"{case}: speed over the best of flash, cuDNN and flash-attn",
            lambda rows, case=case: rows.lead(case, *FLASH),
            1.0,
        )
    for how in ("", " with gradient"):
        yield Aim(
            f"cross_attention{how}: speed over the best peer, which gathers",
            lambda rows, case=f"cross_attention{how}, ": rows.lead(case),
            2.0,
        )
    one, three = "decode_cross_attention, 1 beam", "decode_cross_attention, 3 beam"
    yield Aim(f"{one}: % of copying", lambda rows: rows.value(one, "% of probe"), 80.0)
    yield Aim(
        "decode_cross_attention: time of 3 beams over that of 1",
        lambda rows: rows.value(three, "median ms") / rows.value(one, "median ms"),
        1.1,
        at_most=True,
    )
    for how, share in ((", ", 80.0), (" backward", 70.0)):
        case = f"add_layernorm{how}"
        yield Aim(
            f"{case.rstrip(', ')}: % of copying",
            lambda rows, case=case: rows.value(case, "% of probe"),
            share,
        )
    head, compiled = "linear_cross_entropy", "torch.compile"
    yield Aim(f"{head}: speed over torch.compile", lambda rows: rows.lead(head, compiled), 1.0)
    yield Aim(
        f"{head}: memory over torch.compile's",
        lambda rows: rows.value(head, "peak MB") / rows.value(head, "peak MB", compiled),
        0.1,
        at_most=True,
    )
    yield Aim(
        "contrastive: speed over torch.compile",
        lambda rows: rows.lead("contrastive", compiled),
        1.5,
    )
