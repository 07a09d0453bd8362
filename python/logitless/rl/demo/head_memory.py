"""Memory of the head's forward and backward, with the library and with full logits in plain torch.

The number is the growth of the resident set, each in a process of its own: memory that one left in
the allocator would flatter the next. Parameters, inputs and gradient buffers exist before and are
not counted.
"""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

import logitless as ll
from logitless.rl.demo.full_logits import full_logits_loss
from logitless.rl.rollout import Rollout
from logitless.rl.tracking import memory
from logitless.rl.update import batch_options, old_policy, pack


def head_memory(
    spec: Any | None, budget: str | None, tail_mass: float, entropy_top_p: float | None, rows: int,
    hidden: int, vocab: int,
) -> int:  # fmt: skip
    """Bytes the head's forward and backward need beyond inputs and gradients; `spec` None: full
    logits in plain torch.
    """
    what = (spec, budget, tail_mass, entropy_top_p, rows, hidden, vocab)
    request = pickle.dumps((*what, torch.get_num_threads()))
    answer = subprocess.run(
        [sys.executable, "-m", "logitless.rl.demo.head_memory"],
        input=request,
        capture_output=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"measuring the head's memory failed:\n{answer.stderr.decode()}")
    return int(answer.stdout)


def measure_here(
    spec: Any | None, budget: str | None, tail_mass: float, entropy_top_p: float | None, rows: int,
    hidden: int, vocab: int,
) -> int:  # fmt: skip
    """The same in this process."""
    generator = torch.Generator().manual_seed(0)

    def head_step(rows: int, vocab: int) -> Callable[[], Any]:
        weight = torch.randn(vocab, hidden, generator=generator).mul_(0.1).requires_grad_()
        targets = torch.randint(vocab, (rows,), generator=generator)
        # Peaked at their targets, as a policy's rows are, so that tail_mass serves them.
        states = (60 * weight.detach()[targets]).requires_grad_()
        weight.grad, states.grad = torch.zeros_like(weight), torch.zeros_like(states)
        advantages = torch.randn(rows, generator=generator)
        with torch.no_grad():
            old_logp = torch.full((rows,), -math.log(vocab))
        if spec is None:
            return lambda: full_logits_loss(
                states, weight, targets, old_logp, advantages, 1.0
            ).backward()
        once, logp = torch.ones(rows, 1, dtype=torch.bool), old_logp[:, None]
        rollout = Rollout(targets[:, None], once, once, logp, -logp, ref_logp=logp)
        batch = pack(rollout, advantages, torch.arange(rows))
        asks = spec.control is not None and "entropy_change" in spec.control.needs
        scored = {"entropy_change": torch.zeros(rows)} if asks else None
        shared = batch_options(batch, spec, 0, 0, scored)
        return lambda: ll.linear_policy_loss(
            states,
            weight,
            targets,
            old_logp,
            advantages,
            batch.mask,
            spec,
            cu_seqlens=batch.cu_seqlens,
            token_ids=batch.token_ids,
            memory_budget=budget,
            tail_mass=tail_mass,
            entropy_top_p=entropy_top_p,
            **old_policy(batch, spec),
            **shared,
        ).loss.backward()

    # A small step first: the memory of thread pools and libraries is not the head's.
    head_step(8, 256)()
    measured = head_step(rows, vocab)
    memory.reset_peak()
    before = memory.current()
    measured()
    return memory.peak() - before


if __name__ == "__main__":
    *what, threads = pickle.loads(sys.stdin.buffer.read())
    torch.set_num_threads(threads)
    sys.stdout.write(str(measure_here(*what)))
