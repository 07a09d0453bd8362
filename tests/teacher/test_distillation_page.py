"""The page about distillation, followed to the letter."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "distillation.md").read_text("utf-8")


def block(kind: str, name: str) -> str:
    (text,) = re.findall(rf"^```{kind} {re.escape(name)}\n(.*?)^```$", PAGE, re.M | re.S)
    return str(text)


def test_the_example_prints_what_the_page_says() -> None:
    code = block("python", "distill.py")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == block("text", "distill.py")
    assert run.stdout.count("reverse") == 3
