"""What the core's threads meet in a process: forks, refusals, other threads, other counts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from logitless import _core
from logitless.backends.threads import thread_count
from logitless.loss.evaluate.make_tokens import make_tokens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is tested")

WORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np

def start_torch():
    import torch
    torch.set_num_threads(2)
    torch.ones(1 << 20).exp()
    torch.randn(300, 300) @ torch.randn(300, 300)

def work(library):
    "Given-logits ops and losses, on more rows and tokens than one task has."
    import logitless as ll
    torch = library == "torch" and __import__("torch")
    make = torch.as_tensor if torch else np.asarray
    rng, n = np.random.default_rng(0), 1 << 16
    z, t = make(rng.normal(size=(64, 9000))), make(np.arange(64))
    logp, a = make(-rng.random(n)), make(rng.normal(size=n))
    mask, ids = make(np.ones(n, bool)), make(np.arange(n))
    if torch:
        z.requires_grad_(), logp.requires_grad_()
    stats, spec = ll.token_stats(z, t), ll.presets["kl_cov"]
    old = logp.detach() if torch else logp
    batch = ll.batch_stats(old, a, mask, spec, token_ids=ids, seed=0, step=0)
    loss = ll.policy_loss(logp, old, a, mask, spec, token_ids=ids, batch=batch).loss
    if torch:
        (stats.logp.sum() + 2 * loss).backward()
        assert np.abs(z.grad.numpy()).sum() > 0 and np.abs(logp.grad.numpy()).sum() > 0
    return float(loss.detach() if torch else loss), float(stats.logp.sum())

def forked(call, depth=1):
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            code = forked(call, depth - 1) if depth > 1 else int(not call())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
# A parent forks before and after it does something.
PARENTS = {
    "torch first": """
        start_torch()
        assert forked(lambda: work("numpy")) == 0
        assert forked(lambda: work("torch"), depth=2) == 0
        import torch
        class Items(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, i):
                import logitless as ll
                hidden, weight = torch.ones(8, 16), torch.ones(3000, 16)
                head = ll.linear_token_stats(hidden, weight, torch.arange(8)).logp
                return torch.tensor(work("torch")), head
        rows = torch.utils.data.DataLoader(Items(), num_workers=2, multiprocessing_context="fork")
        assert sum(len(x) for x, _ in rows) == 4
        import logitless as ll
        assert forked(lambda: work("torch")) == 0
        before = work("torch")
        assert forked(lambda: work("torch") == before) == 0
        assert forked(lambda: work("torch") == before, depth=2) == 0
        assert sum(len(x) for x, _ in rows) == 4
        # what plain torch cannot do there, and what it needs
        hidden, weight, ids = torch.randn(64, 64), torch.randn(9000, 64), torch.arange(64)
        heads = (
            lambda: ll.linear_token_stats(hidden, weight, ids),
            lambda: ll.linear_sample(hidden, weight, row_ids=ids, seed=0, step=0),
        )
        def child():
            for head in heads:
                try:
                    head()
                    return False
                except RuntimeError as error:
                    if "torch.set_num_threads(1)" not in str(error):
                        return False
            torch.set_num_threads(1)
            return [head() for head in heads]
        assert forked(child) == 0
    """,
    "logitless first": """
        before = work("numpy")
        def child():
            start_torch()
            return work("numpy") == before and work("torch")
        assert forked(child) == 0
    """,
    "nothing": """
        def child():
            start_torch()
            return work("torch")
        assert forked(child) == 0
    """,
}


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=240, check=True, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize("parent", PARENTS)
def test_every_order_of_forks_computes(parent: str) -> None:
    pytest.importorskip("torch")
    run(WORK + textwrap.dedent(PARENTS[parent]))


def test_refused_threads_are_done_without() -> None:
    """Stacks of 1000 threads do not fit into the address space that is left."""
    script = """
import resource
import numpy as np
import logitless as ll
def logp(n):
    return ll.token_stats(np.zeros((n, 3), np.float32), np.zeros(n, np.int64)).logp
logp(2)
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
x = logp(5000)
print(x.min(), x.max())
"""
    low, high = run(script, LOGITLESS_NUM_THREADS="1000").split()
    assert float(low) == float(high) == pytest.approx(-np.log(3))


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    before, array = torch.get_num_threads(), np.zeros(3)
    tensor, mask = torch.zeros(3), np.ones(3, bool)
    monkeypatch.delenv("LOGITLESS_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(before + 1)
        assert thread_count(tensor) == thread_count(array) == before + 1
        assert make_tokens(tensor, tensor, torch.as_tensor(mask)).threads == before + 1
        monkeypatch.setenv("LOGITLESS_NUM_THREADS", "7")
        assert (thread_count(tensor), thread_count(array)) == (before + 1, 7)
        assert make_tokens(array, array, mask).threads == 7
        monkeypatch.delitem(sys.modules, "torch")
        assert thread_count(array) == 7
        monkeypatch.delenv("LOGITLESS_NUM_THREADS")
        assert thread_count(array) == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)


def test_one_thread_of_torch_starts_no_other() -> None:
    """Rows, losses and selection; in OpenMP's pool started threads stay, and can be counted."""
    pytest.importorskip("torch")
    script = """
import dataclasses, os, torch, logitless as ll
torch.set_num_threads(1)
n = 1 << 20
logp, a, ids = -torch.rand(4, n // 4), torch.randn(4, n // 4), torch.arange(n).view(4, -1)
mask = ids >= 0
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
for name in ("ppo", "kl_cov", "clip_cov", "clip_b", "top_entropy"):
    spec = dataclasses.replace(ll.presets[name], correction=ll.corrections["tis"])
    options = {"entropy": torch.rand(4, n // 4), "rollout_logp": logp, "token_ids": ids}
    batch = ll.batch_stats(logp, a, mask, spec, old_logp=logp, seed=0, step=0, **options)
    ll.policy_loss(logp, logp, a, mask, spec, batch=batch, **options)
ll.covariance(logp, a, mask)
ll.token_stats(torch.randn(64, 9000), torch.arange(64))
print(tasks() - before)
"""
    assert run(script, OMP_NUM_THREADS="1") == "0"


N = 1 << 20
IDS = np.random.default_rng(0).permutation(N).astype(np.int64)
X, Y, MASK = np.linspace(-3, 3, N), np.empty(N), np.ones(N, bool)
STATES, STATE = np.ones((2, N // 8, 8)), np.empty((N // 8, 8))
BAND = dict.fromkeys(("mean_advantage", "mean_logp", "low", "log_low"), -1.0)
LONG: dict[str, Callable[[], Any]] = {
    "value_sums": lambda: _core.tokens.value_sums(
        X, X, MASK, np.empty(_core.tokens.SUM_WORDS, np.int64), 1
    ),
    "covariance_candidates": lambda: _core.tokens.covariance_candidates(
        X, X, MASK, None, IDS, {**BAND, "high": 9.0, "log_high": 9.0}, N,
        np.empty(N, np.int64), np.empty(N, np.int64), 1,
    ),
    "ordered_scores": lambda: _core.tokens.ordered_scores(X, np.empty(N, np.int64), 1),
    "random_scores": lambda: _core.tokens.random_scores(IDS, 1, 2, np.empty(N, np.int64), 1),
    "radix_histogram": lambda: _core.tokens.radix_histogram(
        IDS, IDS, 0, 0, 0, np.empty(256, np.int64), 1
    ),
    "repeated_id": lambda: _core.tokens.repeated_id(IDS, MASK, 1),
    "members": lambda: _core.tokens.members(IDS, np.arange(N // 2), np.empty(N, bool), 1),
    "exp": lambda: _core.tokens.exp(X, Y, 1),
    "merge": lambda: _core.rows.Rows(N // 8, threads=1).merge(STATES, STATE),
    "finalize": lambda: _core.rows.Rows(N // 8, targets=IDS[: N // 8] * 0, threads=1).finalize(
        STATES[0], 5, logp=np.empty(N // 8), entropy=np.empty(N // 8), lse=np.empty(N // 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_long_calls_let_other_threads_run(name: str) -> None:
    """Nothing but the call itself makes way: another thread that wakes up meanwhile sees it."""
    inside, started = [False], threading.Semaphore(0)

    def work() -> None:
        inside[0] = True
        started.release()
        LONG[name]()
        inside[0] = False

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        seen = False
        for _ in range(50):
            thread = threading.Thread(target=work)
            thread.start()
            started.acquire()
            seen |= inside[0]
            thread.join()
            if seen:
                break
    finally:
        sys.setswitchinterval(interval)
    assert seen
