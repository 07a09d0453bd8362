"""Divergences by the kernels of every instruction set that this CPU has."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from logitless import _core
from tests.support.paths import TESTS

FILES = [TESTS / "teacher" / f"test_{name}.py" for name in ("divergence", "noise", "sampling_mask")]
WHICH = "(test_given_logits_are_the_oracle and auto and both) or oracles_numbers"


@pytest.mark.parametrize("isa", _core.runtime.build_info()["isas"])
def test_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITLESS_ISA", isa)
    command = [sys.executable, "-m", "pytest", "-x", "-v", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *map(str, FILES), "-k", WHICH], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:]
    passed = set(re.findall(r"(test_\w+)\.py::.* PASSED", run.stdout))
    assert passed == {file.stem for file in FILES}
