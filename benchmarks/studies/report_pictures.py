"""A run's report as a reader sees it: on a wide screen, light and dark, and on a telephone.

python -m benchmarks.studies.report_pictures RUN/report.html FOLDER

A headless Chromium draws them. Exit status 77 where there is none.
"""

from __future__ import annotations

import argparse
import html
from pathlib import Path

from benchmarks.harness import browser

HEIGHT = 3000
DARK = "(prefers-color-scheme: dark)"
# A window of Chromium is no narrower than 500: a telephone is a frame in one.
WINDOW, TELEPHONE = 500, 400
SKIPPED = 77


def pages(report: str) -> dict[str, tuple[str, int]]:
    """Of each picture the page and its width."""
    frame = (
        f'<body style="margin: 0"><iframe width="{TELEPHONE}" height="{HEIGHT}" '
        f'style="border: 0" srcdoc="{html.escape(report)}"></iframe>'
    )
    dark = report.replace(DARK, "(min-width: 0)")
    return {"wide": (report, 1200), "dark": (dark, 1200), "telephone": (frame, WINDOW)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if browser.browser() is None:
        print(f"no pictures: none of {', '.join(browser.BROWSERS)} is on PATH")
        return SKIPPED
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, (page, width) in pages(options.report.read_text("utf-8")).items():
        picture = options.folder / f"{name}.png"
        browser.draw(page, picture, width=width, height=HEIGHT)
        print(picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
