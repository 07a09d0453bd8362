"""A run's report, drawn by a browser as its readers see it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.harness import browser
from benchmarks.studies import report_pictures
from logitless.rl.report import page

LIGHT, DARK = "#aa0000", "#00aa00"
REPORT = (
    f"<style>body {{ margin: 0; background: {LIGHT} }} "
    f"@media screen and (prefers-color-scheme: dark) {{ body {{ background: {DARK} }} }}</style>"
    "<body>text</body>"
)


def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    (tmp_path / "report.html").write_text(REPORT, "utf-8")
    given = [str(tmp_path / name) for name in ("report.html", "pictures")]
    monkeypatch.setattr(sys, "argv", ["report_pictures", *given])
    return report_pictures.main()


@pytest.mark.skipif(browser.browser() is None, reason="no Chromium on PATH")
def test_light_dark_and_narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    assert drawn(tmp_path, monkeypatch) == 0
    corners = {}
    for picture in (tmp_path / "pictures").iterdir():
        with image.open(picture) as pixels:
            right = pixels.width - 2
            ends = (pixels.getpixel((x, 1500)) for x in (right, 398))
            corners[picture.stem] = ["#{:02x}{:02x}{:02x}".format(*x[:3]) for x in ends]
    assert corners == {
        "wide": [LIGHT, LIGHT], "dark": [DARK, DARK], "telephone": ["#ffffff", LIGHT],
    }  # fmt: skip


def test_the_report_has_what_makes_it_dark() -> None:
    style = Path(page.__file__).with_name("style.css").read_text("utf-8")
    assert report_pictures.DARK in style


def test_without_a_browser_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert drawn(tmp_path, monkeypatch) == report_pictures.SKIPPED
    assert "none of chromium" in capsys.readouterr().out
