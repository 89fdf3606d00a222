"""Curves as a small SVG: one panel a curve, with the line of what grows in proportion beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 300, 220  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 34, 36
COLUMNS = 3
STYLE = (
    "text{font:12px sans-serif;fill:#222}.soft{fill:#777;font-size:11px}"
    ".axis{stroke:#999}.curve{stroke:#1f5fa8;stroke-width:2;fill:none}.dot{fill:#1f5fa8}"
    ".spread{stroke:#1f5fa8}.line{stroke:#c33;stroke-dasharray:4 4}"
)


@dataclass(frozen=True)
class Curve:
    """Seconds against a number.

    Attributes:
        numbers: ascending, two or more.
        medians, lows, highs: seconds of each.
    """

    title: str
    numbers: Sequence[int]
    medians: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def draw(curves: Sequence[Curve], caption: str) -> str:
    """The SVG of some curves, three panels in a row.

    The dashed line of a panel begins at its first point and grows in proportion to the number.
    """
    rows = -(-len(curves) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{STYLE}</style>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for place, curve in enumerate(curves):
        x, y = place % COLUMNS * WIDTH, place // COLUMNS * HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{_panel(curve)}</g>')
    parts.append(f'<text class="soft" x="10" y="{height - 8}">{escape(caption)}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(curve: Curve) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    most_x, most_y = max(curve.numbers), 1.15 * max(curve.highs)

    def at(number: float, seconds: float) -> tuple[float, float]:
        x = LEFT + number / most_x * (right - LEFT)
        return round(x, 1), round(bottom - seconds / most_y * (bottom - TOP), 1)

    first_n, first_s = curve.numbers[0], curve.medians[0]
    reach = min(most_x, most_y * first_n / first_s)  # where the dashed line leaves the panel
    x1, y1 = at(first_n, first_s)
    x2, y2 = at(reach, first_s * reach / first_n)
    points = [at(n, s) for n, s in zip(curve.numbers, curve.medians, strict=True)]
    parts = [
        f'<text x="{LEFT}" y="20">{escape(curve.title)}</text>',
        f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>',
        f'<text class="soft" x="4" y="{TOP + 4}">{most_y:.2f} s</text>',
        f'<text class="soft" x="4" y="{bottom}">0</text>',
        f'<line class="line" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>',
        '<polyline class="curve" points="' + " ".join(f"{x},{y}" for x, y in points) + '"/>',
    ]
    shown = -1.0
    spreads = zip(curve.numbers, points, curve.lows, curve.highs, strict=True)
    for number, (x, y), low, high in spreads:
        parts.append(f'<path class="spread" d="M{x} {at(0, low)[1]}V{at(0, high)[1]}"/>')
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>')
        if x - shown >= 20:  # numbers must not lie upon each other
            label = f'<text class="soft" x="{x}" y="{bottom + 16}" text-anchor="middle">'
            parts.append(f"{label}{number}</text>")
            shown = x
    return "".join(parts)
