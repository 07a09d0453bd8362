"""The README's picture, drawn by a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.browser import browser
from benchmarks.studies import demo_picture

needs_browser = pytest.mark.skipif(browser() is None, reason="no Chromium on PATH")


@needs_browser
def test_it_has_the_legend_and_three_charts_of_the_first_section(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")

    def block(tag: str, colour: str) -> str:
        return f'<{tag} style="background: {colour}; height: 40px"></{tag}>'

    colours = ("#aa0000", "#00aa00", "#0000aa", "#aaaa00")
    figures = "".join(f"<figure>{block('div', x)}</figure>" for x in colours)
    hidden = "#00aaaa"
    report = (
        "<html><head><style>.figures { display: grid } figure { margin: 0 }</style></head><body>"
        f'{block("h1", hidden)}<div class="legend">{block("div", "#aa00aa")}</div>'
        f'<div class="figures">{figures}</div><div class="figures">{block("figure", hidden)}</div>'
        f"{block('pre', hidden)}</body></html>"
    )
    (tmp_path / "report.html").write_text(report, "utf-8")
    demo_picture.draw(tmp_path / "report.html", tmp_path / "demo.png")
    with image.open(tmp_path / "demo.png") as picture:
        wide, high = int(1140 * 1.5), int(300 * 1.5)
        assert picture.size == (wide, high)
        found = {"#{:02x}{:02x}{:02x}".format(*x[:3]): n for n, x in picture.getcolors(1 << 20)}
    assert hidden not in found and colours[3] not in found
    # a third of the width each, and 40 pixels high
    for colour in colours[:3]:
        assert found[colour] == pytest.approx(wide / 3 * 60, rel=0.05)
    assert found["#aa00aa"] == pytest.approx(wide * 60, rel=0.05)


def test_a_browser_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "report.html").write_text("<html></html>", "utf-8")
    with pytest.raises(FileNotFoundError, match=r"none of chromium, .* is on PATH"):
        demo_picture.draw(tmp_path / "report.html", tmp_path / "demo.png")
