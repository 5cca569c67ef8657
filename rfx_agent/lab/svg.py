"""The report's pictures as inline SVG: no script, no request, colours from the page's style sheet.

Every text that goes in is escaped. A picture is 420 units wide, so that its 12-unit letters stay readable on a phone.

Tried in place of these 138 lines of code, on the report of 744 failures (58 KB of pictures):

- matplotlib's SVG backend: 49 lines, 100 MB more to install, 1 s to import, 169 KB. Its SVG is full of styles, links
  and ``url()``, which the page's policy forbids, and does not follow the page into the dark.
- Vega-Lite by ``vl-convert-python``: 119 lines, 84 MB more to install, 0.6 s to start, 190 KB. It keeps the policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

__all__ = ["escape_text", "legend", "lines", "reliability_plot", "scatter", "stacked_bars"]

_WIDTH = 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")
_MOST_POINTS = 4_000  # of a scatter: more only make the file heavy


def escape_text(value: object) -> str:
    """Untrusted text for HTML or SVG, quotes included; control characters and bidirectional overrides become blanks."""
    return escape("".join(c if c.isprintable() else " " for c in str(value)), quote=True)


def legend(names: Sequence[str], *, kind: str) -> str:
    """A list that names each series beside its mark; ``kind`` is ``mark``, ``line`` or ``bar``."""
    items = []
    for i, name in enumerate(names):
        if kind == "mark":
            key = _mark(i, 8, 8)
        elif kind == "line":
            key = f'<path class="line c{i % 8}" stroke-dasharray="{_DASHES[i % 6]}" d="M0 8H24"/>'
        else:
            key = f'<rect class="c{i % 8}" x="1" y="1" width="14" height="14"/>'
        width = 24 if kind == "line" else 16
        swatch = f'<svg class="key" width="{width}" height="16" viewBox="0 0 {width} 16" aria-hidden="true">{key}</svg>'
        items.append(f"<li>{swatch}{escape_text(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def stacked_bars(title: str, desc: str, rows: Sequence[tuple[str, Sequence[float]]], *, unit: str = "") -> str:
    """One horizontal bar a row, its parts in the order of the legend; values are written inside where they fit."""
    longest = max((sum(values) for _, values in rows), default=0.0) or 1.0
    span, body = _WIDTH - 2 * _RIGHT, []
    for i, (label, values) in enumerate(rows):
        y, x = 18 + i * 48, float(_RIGHT)
        body.append(f'<text x="{_RIGHT}" y="{y}">{escape_text(label)}</text>')
        for part, value in enumerate(values):
            width = span * value / longest
            body.append(f'<rect class="c{part % 8}" x="{x:.1f}" y="{y + 5}" width="{width:.1f}" height="20"/>')
            shown = f"{value:.3g}"
            if width > 8 * len(shown) + 4:
                body.append(f'<text class="on c{part % 8}" x="{x + width / 2:.1f}" y="{y + 20}">{shown}</text>')
            x += width
    height = 18 + 48 * len(rows)
    if unit:
        body.append(f'<text class="small" x="{_RIGHT}" y="{height - 2}">{escape_text(unit)}</text>')
    return _figure(title, desc, height + 4, body)


def lines(
    title: str, desc: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x_name: str, y_name: str
) -> str:
    """One line a series through its points (x, y), both axes from the data."""
    points = [p for line in series.values() for p in line]
    frame = _Frame([p[0] for p in points], [p[1] for p in points], 300)
    body = frame.axes(x_name, y_name)
    for i, line in enumerate(series.values()):
        at = [(frame.x(x), frame.y(y)) for x, y in line]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        body.append(f'<path class="line c{i % 8}" stroke-dasharray="{_DASHES[i % 6]}" d="{path}"/>')
        body += [_mark(i, x, y, 3.0) for x, y in at]
    return _figure(title, desc, 300, body)


def scatter(
    title: str,
    desc: str,
    at: npt.NDArray[np.float64],
    group: npt.NDArray[np.int64],
    *,
    x_name: str,
    y_name: str,
    seed: int = 0,
) -> str:
    """Points (n, 2), each with the mark of its group (n,); of very many, a random few thousand."""
    if len(at) > _MOST_POINTS:
        kept = np.sort(np.random.default_rng(seed).choice(len(at), _MOST_POINTS, replace=False))
        at, group = at[kept], group[kept]
    frame = _Frame(at[:, 0].tolist(), at[:, 1].tolist(), 340)
    body = frame.axes(x_name, y_name)
    body += [_mark(int(g), frame.x(x), frame.y(y), 3.2) for (x, y), g in zip(at.tolist(), group.tolist(), strict=True)]
    return _figure(title, desc, 340, body)


def reliability_plot(title: str, desc: str, series: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Observed against predicted frequency per bin, larger marks for fuller bins; the diagonal is perfect."""
    frame = _Frame([0.0, 1.0], [0.0, 1.0], 340)
    body = frame.axes("predicted", "observed")
    body.append(f'<path class="guide" d="M{frame.x(0)} {frame.y(0)}L{frame.x(1)} {frame.y(1)}"/>')
    for i, bins in enumerate(series.values()):
        fullest = max((b["count"] for b in bins), default=1)
        body += [
            _mark(i, frame.x(b["predicted"]), frame.y(b["observed"]), 2.5 + 5 * math.sqrt(b["count"] / fullest))
            for b in bins
        ]
    return _figure(title, desc, 340, body)


class _Frame:
    """Axes from the data, with round ticks."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], height: int) -> None:
        self.height = height
        self.x_ticks, self.y_ticks = _ticks(xs), _ticks(ys)

    def x(self, value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * _share(value, self.x_ticks), 1)

    def y(self, value: float) -> float:
        return round(self.height - _BOTTOM - (self.height - _BOTTOM - _TOP) * _share(value, self.y_ticks), 1)

    def axes(self, x_name: str, y_name: str) -> list[str]:
        bottom, right = self.height - _BOTTOM, _WIDTH - _RIGHT
        body = []
        for tick in self.y_ticks:
            y = self.y(tick)
            body.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
            body.append(f'<text class="small end" x="{_LEFT - 5}" y="{y + 4}">{tick:.3g}</text>')
        for tick in self.x_ticks:
            x = self.x(tick)
            body.append(f'<path class="grid" d="M{x} {_TOP}V{bottom}"/>')
            body.append(f'<text class="small mid" x="{x}" y="{bottom + 15}">{tick:.3g}</text>')
        middle = (_TOP + bottom) / 2
        x_middle = (_LEFT + right) / 2
        body.append(f'<text class="mid" x="{x_middle}" y="{self.height - 6}">{escape_text(x_name)}</text>')
        turned = f'transform="rotate(-90 11 {middle})"'
        body.append(f'<text class="mid" x="11" y="{middle}" {turned}>{escape_text(y_name)}</text>')
        return body


def _ticks(values: Sequence[float], about: int = 5) -> list[float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _share(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _mark(i: int, x: float, y: float, r: float = 5.0) -> str:
    """A shape a series, so that colour is never the only difference."""
    name = f'class="mark c{i % 8}"'
    shape = i % 5
    if shape == 0:
        return f'<circle {name} cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
    if shape == 1:
        return f'<rect {name} x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}"/>'
    corners = {
        2: ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        3: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        4: ((0, 1.2), (1.1, -0.9), (-1.1, -0.9)),
    }[shape]
    path = "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners)
    return f'<path {name} d="M{path}Z"/>'


def _figure(title: str, desc: str, height: int, body: Sequence[str]) -> str:
    # An accessible name that needs no id, so that several pictures on one page cannot clash.
    return (
        f'<svg class="picture" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape_text(title)}">'
        f"<title>{escape_text(title)}</title><desc>{escape_text(desc)}</desc>{''.join(body)}</svg>"
    )
