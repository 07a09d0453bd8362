"""T6: losses of a million tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.clock import bare, close, traffic
from benchmarks.gpu.contact_worker import Cases, Fields, Place

TOKENS, TINY_TOKENS = 1 << 20, 512


def losses(place: Place) -> Cases:
    from benchmarks.cases.contenders.ours import our_loss, our_selecting
    from benchmarks.cases.specs import CLIP_COV, KL_COV

    n = TINY_TOKENS if place.tiny else TOKENS
    ours: dict[str, Callable[..., Fields]] = {
        "policy": our_loss,
        "clip_cov": functools.partial(our_selecting, spec=CLIP_COV),
        "kl_cov": functools.partial(our_selecting, spec=KL_COV),
    }
    for name, function in ours.items():
        yield f"{name}, {n} tokens", functools.partial(one_loss, place, function, n)


def one_loss(place: Place, function: Callable[..., Fields], n: int) -> Fields:
    from benchmarks.cases.inputs import TokenInputs, token_inputs
    from benchmarks.harness.case import Case

    # Drawn once and moved: the CPU's loss of the same tokens is the truth.
    there = token_inputs(Case(rows=n, device="cpu"))
    here = TokenInputs(*(x.to(place.device) for x in vars(there).values()))

    def run(tokens: TokenInputs) -> tuple[Tensor, Tensor]:
        logp = tokens.logp.detach().requires_grad_()
        loss = function(logp, tokens)["loss"]
        return loss.detach(), torch.autograd.grad(loss, logp)[0]

    found, expected = run(here), run(there)
    for mine, truth in zip(found, expected, strict=True):
        close(mine.cpu(), truth.double(), 1e-5)
    counts = traffic(place, lambda: run(here))
    counts.pop("kernels")
    return {**bare(place, lambda: run(here)), **counts}
