"""Checks an installed logitless in an environment that has NumPy and no torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

import logitless as ll

COMMAND = str(Path(sys.executable).with_name("logitless"))


def logitless(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)


assert importlib.util.find_spec("torch") is None, "torch is installed here: this proves nothing"
assert "site-packages" in str(ll.__file__), ll.__file__

logits = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
targets = np.array([0, 500, 999])
stats = ll.token_stats(logits, targets)
z = logits.astype(np.float64)
log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
np.testing.assert_allclose(stats.logp, log_p[np.arange(3), targets], atol=4e-6)
np.testing.assert_allclose(stats.entropy, -(np.exp(log_p) * log_p).sum(-1), atol=4e-6)

for arguments in (["--help"], ["--version"], ["doctor"], ["losses"]):
    run = logitless(*arguments)
    assert run.returncode == 0, f"logitless {arguments}: {run.stderr}"
    assert run.stdout, f"logitless {arguments} said nothing"
run = logitless("demo")
assert run.returncode != 0
assert "pip install 'logitless[train]'" in run.stderr, run.stderr
assert "Traceback" not in run.stderr, run.stderr
print(f"logitless {ll.__version__}: imports, computes and answers without torch")
