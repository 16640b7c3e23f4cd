"""Line charts over the steps of a training as SVG, without scripts: for training.html and for Dagster.

    chart("Loss", [Line("a", "training loss", [(1, 2.3), (2, 1.9)])], kept_step=2)      # Markup("<svg …>")

A line has at most MAX_POINTS points, so that a chart stays small. Colors are in the SVG itself, for light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup, escape

MAX_POINTS = 200
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 230, 58, 14, 30, 26
TICKS = 4
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#5b6675}.back{fill:#fff}.grid{stroke:#dde2ea}.kept{stroke:#5b6675;"
    "stroke-dasharray:2 3}polyline{fill:none;stroke-width:2}.a{stroke:#3b6fb6}.b{stroke:#b3362a;stroke-dasharray:7 4}"
    ".raw{stroke:#3b6fb6;stroke-width:1;opacity:.3}circle{fill:#b3362a}.key-a{fill:#3b6fb6}.key-b{fill:#b3362a}"
    "@media(prefers-color-scheme:dark){.back{fill:#14181e}.grid{stroke:#333c48}text{fill:#9aa5b4}}"
)
Points: TypeAlias = Sequence[tuple[int, float]]
Place: TypeAlias = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart. `css`: "a", "b" (dashed, with dots) or "raw" (thin); `name`: in the legend, "" for none;
    `points`: (step, value)."""

    css: str
    name: str
    points: Points


def chart(title: str, lines: Sequence[Line], kept_step: int | None = None) -> Markup:
    """The SVG; "" with fewer than two points. `kept_step`: where a vertical line stands."""
    points = [point for line in lines for point in line.points]
    if len(points) < 2:
        return Markup("")
    last = max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, last)
        return round(x, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    parts = [_value_tick(place, last, low + (high - low) * n / TICKS) for n in range(TICKS + 1)]
    parts += [_step_tick(place, last * n / TICKS, low) for n in range(TICKS + 1)]
    parts += [_kept(place, kept_step, low, high)] if kept_step else []
    parts += [_polyline(place, line) for line in lines]
    return _svg(title, [_legend(lines), *parts])


def _svg(title: str, parts: Sequence[str]) -> Markup:
    label = escape(title)
    back = f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>'
    body = f'{back}<text x="{LEFT}" y="16" font-weight="600">{label}</text>'
    frame = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"'
    return Markup(f"<svg {frame}><style>{STYLE}</style>{body}{''.join(parts)}</svg>")  # noqa: S704 (texts are escaped)


def _value_tick(place: Place, last: int, value: float) -> str:
    (left, y), (right, _) = place(0, value), place(last, value)
    line = f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f'{line}<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{shown}</text>'


def _step_tick(place: Place, step: float, low: float) -> str:
    return f'<text x="{place(step, low)[0]}" y="{HEIGHT - 8}" text-anchor="middle">{round(step)}</text>'


def _kept(place: Place, step: int, low: float, high: float) -> str:
    (x, top), (_, bottom) = place(step, high), place(step, low)
    side, anchor = (4, "start") if x < WIDTH / 2 else (-4, "end")
    line = f'<line class="kept" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
    return f'{line}<text x="{x + side}" y="{top + 10}" text-anchor="{anchor}">kept: step {step}</text>'


def _polyline(place: Place, line: Line) -> str:
    spots = [place(step, value) for step, value in thinned(line.points)]
    drawn = f'<polyline class="{line.css}" points="{" ".join(f"{x},{y}" for x, y in spots)}"/>'
    return drawn + "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in spots if line.css == "b")


def _legend(lines: Sequence[Line]) -> str:
    drawn = []
    for n, line in enumerate(line for line in lines if line.name):
        x = 250 + 200 * n
        drawn.append(f'<rect class="key-{line.css}" x="{x}" y="7" width="10" height="10"/>')
        drawn.append(f'<text x="{x + 15}" y="16">{escape(line.name)}</text>')
    return "".join(drawn)


def thinned(points: Points) -> Points:
    """At most MAX_POINTS of the points, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return points
    return [points[round(n * (len(points) - 1) / (MAX_POINTS - 1))] for n in range(MAX_POINTS)]
