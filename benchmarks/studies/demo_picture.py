"""The README's picture: reward, entropy and distinct right answers, of the demo's report.

python -m benchmarks.studies.demo_picture runs/demo/report.html docs/demo.png

A headless Chromium draws the page, of which the legend and the first three charts are left.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Of the page, in its own pixels; the picture has SCALE of them for each.
WIDTH, HEIGHT, SCALE = 1140, 300, 1.5
CHARTS = 3
STYLE = f"""<style>
body > :not(.legend):not(.figures), .figures ~ .figures, figcaption {{ display: none }}
figure:nth-child(n + {CHARTS + 1}) {{ display: none }}
.figures {{ grid-template-columns: repeat({CHARTS}, 1fr) }}
html {{ overflow: hidden }}
</style></head>"""


def browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def draw(report: Path, picture: Path) -> None:
    """FileNotFoundError where there is no Chromium."""
    program = browser()
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is on PATH")
    with tempfile.TemporaryDirectory() as folder:
        page, drawn = Path(folder, "page.html"), Path(folder, "picture.png")
        page.write_text(report.read_text("utf-8").replace("</head>", STYLE, 1), "utf-8")
        subprocess.run(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}",
             f"--force-device-scale-factor={SCALE}", "--virtual-time-budget=5000",
             f"--screenshot={drawn}", page.as_uri()],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip
        shutil.copyfile(drawn, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(options.report, options.picture)


if __name__ == "__main__":
    main()
