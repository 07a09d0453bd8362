"""The example runs as it is, and its policy learns."""

from __future__ import annotations

import runpy

import pytest

from tests.plugins.trl.setting import quiet
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "trl_grpo.py"))
    with quiet():
        rewards = example["main"](steps=30)
    assert len(rewards) == 30
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
