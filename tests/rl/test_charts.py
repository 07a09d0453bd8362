"""Charts: from numbers to places."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from logitless.rl.report import charts, svg
from logitless.rl.report.scales import MOST_POINTS, Scale, label, span, thinned, ticks
from logitless.rl.report.svg import Chart, Series


def drawn(*series: Series, **options: Any) -> ElementTree.Element:
    return ElementTree.fromstring(svg.draw(Chart("title", "x", "y", series, **options)))


def places(polyline: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = (point.split(",") for point in polyline.get("points", "").split())
    return [(float(a), float(b)) for a, b in pairs]


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0.0, 1.0, False, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.1, 0.23, False, ["-0.1", "0", "0.1", "0.2"]),
        (0.9, 6.1, True, ["2", "4", "6"]),
        (0.9, 2.1, True, ["1", "2"]),
        (0.0, 4.2e-6, False, ["0", "1e-6", "2e-6", "3e-6", "4e-6"]),
        (100000.0, 300000.0, False, ["1e5", "1.5e5", "2e5", "2.5e5", "3e5"]),
        (0.0, 1.6e-5, False, ["0", "5e-6", "1e-5", "1.5e-5"]),
        (120.0, 900.0, False, ["200", "400", "600", "800"]),
    ],
)
def test_ticks(low: float, high: float, whole: bool, expected: list[str]) -> None:
    found = ticks(low, high, whole=whole)
    assert [label(value, found) for value in found] == expected


def test_spans() -> None:
    assert span([1.0, 3.0, float("nan"), float("inf")], 0.1) == pytest.approx((0.8, 3.2))
    assert span([4.0], 0.1) == (2.0, 6.0) and span([0.0, 0.0], 0.1) == (-0.1, 1.0)
    with pytest.raises(ValueError, match="needs a finite number"):
        span([float("nan")], 0.1)
    assert Scale(1.0, 3.0, 100.0, 0.0)(2.5) == 25.0


def test_a_long_curve_keeps_its_ends() -> None:
    assert thinned(3) == [0, 1, 2] and len(thinned(MOST_POINTS)) == MOST_POINTS
    found = thinned(12345)
    assert len(set(found)) == MOST_POINTS and (found[0], found[-1]) == (0, 12344)
    (line,) = drawn(Series("a", 0, range(5000), [0.5] * 5000)).iter("polyline")
    assert len(places(line)) == MOST_POINTS


def test_lines_stand_where_their_numbers_are() -> None:
    band = {"low": [0.0, 0.5], "high": [1.0, 1.0]}
    chart = drawn(Series("a & b", 7, [1, 2], [0.25, 0.75], **band), zero=True)
    x = Scale(*span([1, 2], 0.02), svg.LEFT, svg.WIDTH - svg.RIGHT)
    y = Scale(*span([0.0, 1.0], 0.05), svg.HEIGHT - svg.BOTTOM, svg.TOP)
    (group,) = chart.iter("g")
    assert group.attrib == {
        "class": "line s1 dashed", "data-name": "a & b", "data-x": "1 2", "data-y": "0.25 0.75",
    }  # fmt: skip
    (line,) = group.iter("polyline")
    expected = [(x(1), y(0.25)), (x(2), y(0.75))]
    assert places(line) == [pytest.approx(pair, abs=0.051) for pair in expected]
    (polygon,) = group.iter("polygon")
    around = [(x(1), y(0)), (x(2), y(0.5)), (x(2), y(1)), (x(1), y(1))]
    assert places(polygon) == [pytest.approx(pair, abs=0.051) for pair in around]
    zero = next(p for p in chart.iter("polyline") if p.get("class") == "rule")
    assert [b for _, b in places(zero)] == pytest.approx([y(0), y(0)], abs=0.051)


def test_points_say_their_values() -> None:
    chart = drawn(Series("<m>", 0, [1.0, 2.0, float("nan")], [3.0, 4.5, 1.0], "points"))
    assert [t.text for t in chart.iter("title")] == ["<m>: 1, 3", "<m>: 2, 4.5"]
    # a curve of one step is a point
    assert len(list(drawn(Series("a", 0, [1], [2.0])).iter("circle"))) == 1


def test_a_diagonal_has_equal_ends() -> None:
    chart = drawn(Series("a", 0, [-1.0, 0.0], [0.0, 2.0], "points"), diagonal=True)
    ((rule),) = chart.iter("polyline")
    x = Scale(*span([-1.0, 2.0], 0.02), svg.LEFT, svg.WIDTH - svg.RIGHT)
    y = Scale(*span([-1.0, 2.0], 0.05), svg.HEIGHT - svg.BOTTOM, svg.TOP)
    low, high = x.low, x.high
    expected = [(x(low), y(low)), (x(high), y(high))]
    assert places(rule) == [pytest.approx(pair, abs=0.051) for pair in expected]


def test_bars_add_up() -> None:
    markup = svg.stacked({"a": {"body": 1.0, "head": 3.0}, "b": {"head": 2.0}}, "seconds")
    root = ElementTree.fromstring(f"<div>{markup}</div>")
    bars = list(root.iter("rect"))
    room = svg.WIDTH - 2 * svg.RIGHT
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths == pytest.approx([room / 4, room * 3 / 4, room / 2], abs=0.051)
    assert float(bars[1].get("x", "")) == pytest.approx(svg.RIGHT + room / 4, abs=0.051)
    assert [bar.get("class") for bar in bars] == ["p0", "p1", "p1"]
    assert [t.text for t in root.iter("title")][1] == "a, head: 3 seconds"
    assert [t.text for t in root.iter("text")] == ["a: 4 seconds", "b: 2 seconds"]
    assert ["".join(s.itertext()) for s in root.iter("span")] == ["body", "head"]


def test_a_curve_is_of_the_seeds() -> None:
    seeds = [
        [{"step": i, "reward": float(i)} for i in range(7)],
        [{"step": i, "reward": 2.0} for i in range(6)],
    ]
    one = charts.curve("a", 0, seeds[:1], "reward")
    assert one.x == [1, 2, 3, 4, 5, 6, 7] and one.single == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert one.y == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]) and one.low == ()
    both = charts.curve("a", 0, seeds, "reward")
    assert both.x == [1, 2, 3, 4, 5, 6] and both.single == ()
    assert both.low == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0])
    assert both.high == pytest.approx([2.0, 2.0, 2.0, 2.0, 2.0, 3.0])
    assert both.y == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0, 2.5])
    assert charts.curve("a", 0, seeds, "entropy").x == []


def test_times_are_means_over_all_steps() -> None:
    rows = [{"seconds/train body": 1.0, "seconds/entropy probe": 4.0}, {"seconds/train body": 3.0}]
    assert charts.times({"a": rows}) == {"a": {"train body": 2.0, "entropy probe": 2.0}}
