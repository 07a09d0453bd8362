"""Pages as a headless Chromium draws them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def draw(page: str, picture: Path, *, width: int, height: int, scale: float = 1.0) -> None:
    """HTML as a picture: width x height pixels of the page, each `scale` of the picture's wide.
    FileNotFoundError where there is no Chromium."""
    program = browser()
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is on PATH")
    with tempfile.TemporaryDirectory() as folder:
        source, drawn = Path(folder, "page.html"), Path(folder, "picture.png")
        source.write_text(page, "utf-8")
        subprocess.run(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={folder}/profile", f"--window-size={width},{height}",
             f"--force-device-scale-factor={scale}", "--virtual-time-budget=5000",
             f"--screenshot={drawn}", source.as_uri()],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip
        shutil.copyfile(drawn, picture)
