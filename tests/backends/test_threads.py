"""One policy for all ops: how many threads work for a call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="changes the CPUs of a process")

# More tasks than any number of threads below.
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import logitless as ll
from logitless import _core

torch_threads, tensors = json.loads(sys.argv[1])
if torch_threads:
    import torch
    torch.set_num_threads(torch_threads)
make = torch.from_numpy if tensors else np.asarray
rng, n = np.random.default_rng(0), 1 << 20
logp, advantages = make(-rng.random(n)), make(rng.normal(size=n))
mask, ids = make(np.ones(n, bool)), make(rng.permutation(n))
z, t = make(rng.normal(size=(200, 9000)).astype(np.float32)), make(np.arange(200))
h, w = make(rng.normal(size=(64, 32))), make(rng.normal(size=(20000, 32)))
part = make(np.arange(64))
clip_cov, kl_cov = ll.presets["clip_cov"], ll.presets["kl_cov"]
more = {"token_ids": ids, "seed": 0, "step": 0}
OPS = {
    "rows": lambda: ll.token_stats(z, t),
    "loss": lambda: ll.policy_loss(logp, logp, advantages, mask, ll.presets["ppo"]),
    "selection of a band": lambda: ll.batch_stats(
        logp, advantages, mask, clip_cov, old_logp=logp, **more
    ),
    "selection of the largest": lambda: ll.batch_stats(logp, advantages, mask, kl_cov, **more),
    "covariance": lambda: ll.covariance(logp, advantages, mask),
}
# NumPy's own products have the threads of its BLAS.
if tensors:
    OPS["head"] = lambda: ll.linear_token_stats(h, w, part)
    OPS["sampling"] = lambda: ll.linear_sample(h, w, row_ids=part, seed=0, step=0)
    OPS["gradient of rows"] = lambda: ll.token_stats(z.requires_grad_(), t).logp.sum().backward()

def team(op):
    _core.runtime.widest_team()
    op()
    return _core.runtime.widest_team()

print(json.dumps({name: team(op) for name, op in OPS.items()}))
"""
MANY = 4 + len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
# torch.set_num_threads (0: no torch), whether tensors, the environment, and the threads expected:
# one, or more than any other rule gives.
POLICY: dict[str, tuple[int, bool, dict[str, str], int]] = {
    "tensors follow torch": (MANY, True, {"LOGITLESS_NUM_THREADS": "2"}, MANY),
    "torch with one thread": (1, True, {}, 1),
    "arrays follow the variable": (2, False, {"LOGITLESS_NUM_THREADS": str(MANY)}, MANY),
    "arrays follow torch where it is loaded": (MANY, False, {}, MANY),
    "arrays without torch follow the variable": (0, False, {"LOGITLESS_NUM_THREADS": "1"}, 1),
    "arrays without torch may ask for more": (0, False, {"LOGITLESS_NUM_THREADS": f"{MANY}"}, MANY),
    "arrays without torch follow the affinity": (0, False, {}, 1),
}


@pytest.mark.parametrize("name", POLICY)
def test_every_op_takes_as_many_threads(name: str) -> None:
    threads, tensors, environment, expected = POLICY[name]
    if threads:
        pytest.importorskip("torch")
    ours = ("LOGITLESS_NUM_THREADS", "OMP_NUM_THREADS")
    inherited = {k: v for k, v in os.environ.items() if k not in ours}
    one = {min(os.sched_getaffinity(0))}
    options: dict[str, Any] = {"preexec_fn": lambda: os.sched_setaffinity(0, one)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([threads, tensors])], cwd=ROOT,
        env={**inherited, **environment}, capture_output=True, text=True, check=False,
        **(options if name.endswith("affinity") else {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert len(seen) > 4
    assert seen == dict.fromkeys(seen, expected)
