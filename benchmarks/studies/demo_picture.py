"""The README's picture: reward, entropy and distinct right answers, of the demo's report.

python -m benchmarks.studies.demo_picture runs/demo/report.html docs/demo.png

A headless Chromium draws the page, of which the legend and the first three charts are left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness import browser

# Of the page, in its own pixels; the picture has SCALE of them for each.
WIDTH, HEIGHT, SCALE = 1140, 300, 1.5
CHARTS = 3
STYLE = f"""<style>
body > :not(.legend):not(.figures), .figures ~ .figures, figcaption {{ display: none }}
figure:nth-child(n + {CHARTS + 1}) {{ display: none }}
.figures {{ grid-template-columns: repeat({CHARTS}, 1fr) }}
html {{ overflow: hidden }}
</style></head>"""


def draw(report: Path, picture: Path) -> None:
    """FileNotFoundError where there is no Chromium."""
    page = report.read_text("utf-8").replace("</head>", STYLE, 1)
    browser.draw(page, picture, width=WIDTH, height=HEIGHT, scale=SCALE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(options.report, options.picture)


if __name__ == "__main__":
    main()
