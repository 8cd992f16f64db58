"""Charts: what is drawn lies within the picture, at the right place, with ticks that a reader knows."""

import re
import xml.etree.ElementTree as ET

import pytest

from raychat.report.chart import Axis, Line, Panel, draw, short, smooth, thinned

AB = Axis("x", bands=[(0, 0.5, "A"), (0.5, 1, "B")])
SVG = "{http://www.w3.org/2000/svg}"


def circles(svg: str) -> list[tuple[float, float]]:
    found = ET.fromstring(svg).iter(f"{SVG}circle")
    return [(float(circle.get("cx") or 0), float(circle.get("cy") or 0)) for circle in found]


def test_points_lie_where_their_values_say() -> None:
    (a, b, c) = circles(draw([Panel("t", [Line([(0, 0), (5, 1), (10, 4)], 0, kind="dots")])], Axis()))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert (a[1] - b[1]) * 4 == pytest.approx(a[1] - c[1], abs=0.5)  # upwards


def test_logarithmic_axes_space_factors_alike() -> None:
    line = Line([(1e9, 8), (1e11, 4), (1e13, 2), (0, 3), (1e12, -1)], 0, kind="dots")
    found = circles(draw([Panel("t", [line], log=True)], Axis(log=True)))
    assert len(found) == 3  # what is not positive has no place
    (a, b, c) = found
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.2)


@pytest.mark.parametrize("width", [350, 960])
def test_everything_is_within_the_picture(width: int) -> None:
    lines = [
        Line([(i, i % 7 - 3.0) for i in range(100)], 1, "a", "faint"),
        Line([(50, 2.0)], 2, "b", bars=[(1.5, 9.0)]),
    ]
    svg = draw([Panel("one", lines), Panel("two", lines)], Axis("x", bands=[(0, 40, "A"), (40, 99, "B")]), width=width)
    _, _, right, bottom = map(float, re.findall(r'viewBox="([^"]*)"', svg)[0].split())
    for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", svg):
        assert 0 <= float(x) <= right
        assert 0 <= float(y) <= bottom
    assert all(0 <= x <= right and 0 <= y <= bottom for x, y in circles(svg))


def test_labels_of_bands_have_a_line_of_their_own() -> None:
    panel = Panel("a title that is longer than half of the picture", [Line([(0, 1), (1, 2)], 0)])
    found = {text.text: float(text.get("y") or 0) for text in ET.fromstring(draw([panel], AB)).iter(f"{SVG}text")}
    assert found[panel.title] - found["A"] > 15


def test_labels_are_text_and_not_markup() -> None:
    svg = draw([Panel("<b>", [Line([(0, 1), (1, 2)], 0, "a & b")])], Axis("<i>"))
    assert {"<b>", "a & b", "<i>"} <= set(ET.fromstring(svg).itertext())


def test_one_point_and_equal_values_can_be_drawn() -> None:
    for values in ([(1.0, 0.0)], [(1.0, 2.0), (2.0, 2.0)]):
        assert circles(draw([Panel("t", [Line(values, 0, kind="both")])], Axis()))


def test_numbers_are_short() -> None:
    assert [short(x) for x in (0, 0.5, 12, 2500, 3e9, 1.5e12, 2e-5)] == [
        "0",
        "0.5",
        "12",
        "2,500",
        "3e9",
        "1.5e12",
        "2e-5",
    ]


def test_thinned_keeps_both_ends() -> None:
    points = [(float(i), 0.0) for i in range(1001)]
    found = thinned(points, 100)
    assert len(found) <= 102
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert thinned(points[:5], 100) == points[:5]


def test_running_mean_begins_without_bias() -> None:
    assert [y for _, y in smooth([(i, 3.0) for i in range(9)], 5)] == pytest.approx([3.0] * 9)
