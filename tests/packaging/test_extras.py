"""The extras of pyproject.toml, and who names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

NAMED = [
    path
    for folder in ("python", "docs", "benchmarks", "examples", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".yaml")
] + [ROOT / "README.md", ROOT / "dev"]


def extras() -> dict[str, str]:
    """Name -> what it asks for."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    return dict(re.findall(r"^([a-z-]+) = (\[.*?\]$)", section, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("path", NAMED, ids=[str(path.relative_to(ROOT)) for path in NAMED])
def test_extras_that_are_named_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    named = re.findall(r"pip(?:_install| install)[^\n]*?(?:logitless|\.)\[([a-z,-]+)\]", text)
    missing = {name for names in named for name in names.split(",")} - set(extras())
    assert not missing


def test_a_run_needs_no_matplotlib() -> None:
    assert "matplotlib" in extras()["plot"] and "matplotlib" not in extras()["train"]
    importing = [
        path
        for path in (ROOT / "python").rglob("*.py")
        if re.search(r"^\s*(import|from) matplotlib", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert importing == []
