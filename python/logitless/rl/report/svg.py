"""Charts as inline SVG: numbers in, markup out. Their colours are classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from logitless.rl.report.scales import Scale, label, span, thinned, ticks

# A user unit is a pixel where a chart has a column of a page, or the width of a telephone.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 38
# Of the page's style: s0 to s5; after these they begin again, dashed.
COLORS = 6
# Of a stacked bar: p0 to p8.
PARTS = 9
BAR, BAR_ROOM = 16, 38


class Series(NamedTuple):
    """What one method has in a chart. kind: "line", which may have a band and single values behind
    it; "fit", a thin line; "points"; or "bar" from `low` to `high`, with a point at y."""

    name: str
    slot: int  # its place among all methods, which is its colour
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "line"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    single: Sequence[float] = ()


class Chart(NamedTuple):
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    whole_x: bool = False  # x counts: no ticks between
    zero: bool = False  # a line at y = 0
    diagonal: bool = False  # a line at y = x


def draw(chart: Chart) -> str:
    """The chart as one svg element."""
    x, y = scales(chart)
    return _element(
        "svg",
        *_grid(x, y, chart),
        *_rules(x, y, chart),
        *(_series(one, x, y) for one in chart.series),
        _element("line", class_="guide", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM),
        class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=chart.title,
    )  # fmt: skip


def legend(slots: Mapping[str, int]) -> str:
    """A button a method; the page's script hides and shows by it."""
    return "".join(
        _element(
            "button", _swatch(f"s{slot % COLORS}"), escape(name),
            type="button", data_name=name, aria_pressed="true",
        )
        for name, slot in slots.items()
    )  # fmt: skip


def stacked(bars: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """A bar a method, of parts one after another; with what their colours mean."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    most = max(sum(bar.values()) for bar in bars.values()) or 1.0
    end = TOP + len(bars) * BAR_ROOM
    x = Scale(0.0, most, RIGHT, WIDTH - RIGHT)
    marks = []
    for row, (name, bar) in enumerate(bars.items()):
        top, before = TOP + row * BAR_ROOM, 0.0
        total = f"{name}: {sum(bar.values()):.3g} {unit}"
        marks.append(_text(RIGHT, top + 10, total, class_="name"))
        for part, value in bar.items():
            title = _element("title", escape(f"{name}, {part}: {value:.3g} {unit}"))
            places = {"x": _place(x(before)), "width": _place(x(value) - x(0.0))}
            color = f"p{parts.index(part) % PARTS}"
            marks.append(_element("rect", title, class_=color, y=top + 15, height=BAR, **places))
            before += value
    colors = "".join(
        _element("span", _swatch(f"p{i % PARTS}"), escape(part)) for i, part in enumerate(parts)
    )
    return _element(
        "svg", *marks,
        class_="bars", viewBox=f"0 0 {WIDTH} {end}", role="img", aria_label=f"{unit} of each part",
    ) + _element("div", colors, class_="parts")  # fmt: skip


def scales(chart: Chart) -> tuple[Scale, Scale]:
    xs = [value for one in chart.series for value in one.x]
    ys = [v for one in chart.series for v in (*one.y, *one.low, *one.high, *one.single)]
    ys = [*ys, 0.0] if chart.zero else ys
    if chart.diagonal:
        xs = ys = [*xs, *ys]
    return (
        Scale(*span(xs, 0.02), LEFT, WIDTH - RIGHT),
        Scale(*span(ys, 0.05), HEIGHT - BOTTOM, TOP),
    )


def _grid(x: Scale, y: Scale, chart: Chart) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    marks = []
    values = ticks(y.low, y.high)
    for value in values:
        at = _place(y(value))
        marks.append(_element("line", class_="grid", x1=LEFT, x2=right, y1=at, y2=at))
        marks.append(_text(LEFT - 6, y(value) + 4, label(value, values), text_anchor="end"))
    values = ticks(x.low, x.high, whole=chart.whole_x, most=6)
    for value in values:
        at = _place(x(value))
        marks.append(_element("line", class_="axis", x1=at, x2=at, y1=bottom, y2=bottom + 4))
        marks.append(_text(x(value), bottom + 16, label(value, values), text_anchor="middle"))
    marks.append(_element("line", class_="axis", x1=LEFT, x2=right, y1=bottom, y2=bottom))
    middle = (LEFT + right) / 2
    marks.append(_text(middle, HEIGHT - 5, chart.x_label, class_="label", text_anchor="middle"))
    at = f"translate(11 {_place((TOP + bottom) / 2)}) rotate(-90)"
    marks.append(_text(0, 0, chart.y_label, class_="label", text_anchor="middle", transform=at))
    return marks


def _rules(x: Scale, y: Scale, chart: Chart) -> list[str]:
    rules = []
    if chart.zero:
        rules.append(((x.low, 0.0), (x.high, 0.0)))
    if chart.diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        rules.append(((low, low), (high, high)))
    return [_element("polyline", class_="rule", points=_points(ends, x, y)) for ends in rules]


def _series(one: Series, x: Scale, y: Scale) -> str:
    at = [i for i in range(len(one.x)) if math.isfinite(one.x[i]) and math.isfinite(one.y[i])]
    at = [at[i] for i in thinned(len(at))]

    def values(of: Sequence[float]) -> list[float]:
        return [of[i] for i in at]

    xs, ys = values(one.x), values(one.y)
    marks: list[str] = []
    if one.kind == "points":
        marks = [_dot(one.name, a, b, x, y) for a, b in zip(xs, ys, strict=True)]
    elif one.kind == "bar":
        for a, b, low, high in zip(xs, ys, values(one.low), values(one.high), strict=True):
            ends = {"y1": _place(y(low)), "y2": _place(y(high))}
            marks.append(_element("line", class_="bar", x1=_place(x(a)), x2=_place(x(a)), **ends))
            marks.append(_dot(one.name, a, b, x, y))
    else:
        if one.low:
            band = [*zip(xs, values(one.low), strict=True)]
            band += reversed([*zip(xs, values(one.high), strict=True)])
            marks.append(_element("polygon", class_="band", points=_points(band, x, y)))
        if one.single:
            single = _points(zip(xs, values(one.single), strict=True), x, y)
            marks.append(_element("polyline", class_="single", points=single))
        line = _points(zip(xs, ys, strict=True), x, y)
        marks.append(_element("polyline", class_=f"{one.kind}-line", points=line))
        if len(xs) == 1:
            marks.append(_dot(one.name, xs[0], ys[0], x, y))
    dashed = " dashed" if one.slot >= COLORS else ""
    given = {"data_x": _numbers(xs), "data_y": _numbers(ys)} if one.kind == "line" else {}
    classes = f"{one.kind} s{one.slot % COLORS}{dashed}"
    return _element("g", *marks, class_=classes, data_name=one.name, **given)


def _dot(name: str, a: float, b: float, x: Scale, y: Scale) -> str:
    title = _element("title", escape(f"{name}: {a:.4g}, {b:.4g}"))
    return _element("circle", title, cx=_place(x(a)), cy=_place(y(b)), r=2.5)


def _points(pairs: Iterable[tuple[float, float]], x: Scale, y: Scale) -> str:
    return " ".join(f"{_place(x(a))},{_place(y(b))}" for a, b in pairs)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _place(value: float) -> str:
    return f"{value:.1f}"


def _swatch(color: str) -> str:
    return _element("i", class_=color)


def _text(x: float, y: float, text: str, **attributes: Any) -> str:
    return _element("text", escape(text), x=_place(x), y=_place(y), **attributes)


def _element(name: str, *inside: str, **attributes: Any) -> str:
    """class_ is class, data_name data-name: Python has no such names. `inside` is markup."""
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}={quoteattr(str(value))}"
        for key, value in attributes.items()
    )
    return f"<{name}{given}>{''.join(inside)}</{name}>"
