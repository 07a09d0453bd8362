"""sampling_mask on two or three ranks: every rank passes all ids, and serves those of its range.
See shards.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import logitless as ll
from tests.support import cases
from tests.support.heads import batch, inputs_of, spec_of
from tests.support.mask_cases import KINDS, mask_of
from tests.support.plans import machine
from tests.support.row_outputs import EXTRAS
from tests.support.tolerances import assert_bitwise_equal, assert_gradients
from tests.support.workers.vocab.shards import (
    RANK,
    SLACK,
    WORLD,
    H,
    N,
    V,
    compare,
    compare_with_one_rank,
    layouts,
    loss_outputs,
    mine,
    part,
    refusal,
    run,
    same_on_all_ranks,
    values,
    weighted,
)

TRUNCATIONS: tuple[dict[str, Any], ...] = (
    {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 2000, "min_p": 0.001},
)  # fmt: skip
FULL = ("kept_mass", "full_logp", "full_entropy")


def near_gradient(dtype: torch.dtype, ours: Tensor, right: Tensor, whole: Tensor) -> None:
    scale = SLACK[dtype] * max(1.0, float(whole.abs().max()))
    assert_gradients(ours, right, dtype, scale=scale)


def head() -> None:
    """Values, extras and gradients of every kind of set, gathered and by dense products."""
    generator = torch.Generator().manual_seed(2)
    t = cases.targets(2, N, V)
    g = cases.upstream(2, N)
    for dtype in (torch.float32, torch.float64):
        h, w = (torch.randn(n, H, generator=generator).to(dtype) for n in (N, V))
        for ends in layouts():
            # The target alone has no gradient, which the comparison would miss.
            for number, kind in enumerate(kind for kind in KINDS if kind != "target"):
                chain = cases.chain(cases.CHAINS[number % len(cases.CHAINS)], 2, N, V)
                options = {
                    **chain, "mask": cases.mask(2, N), "sampling_mask": mask_of(kind, 1, t, V),
                    "extras": (*FULL, *EXTRAS),
                }  # fmt: skip
                if "bias" in options:
                    options["bias"] = options["bias"].to(dtype)
                compare_with_one_rank(
                    partial(ll.linear_token_stats, targets=t), {"hidden": h, "weight": w}, ends,
                    options, outputs=values, loss=lambda stats: weighted(stats, g),
                    near=partial(compare, dtype=dtype),
                    near_gradient=partial(near_gradient, dtype),
                )  # fmt: skip


def likeliest() -> None:
    """entropy_top_p: all ranks name the same tokens, wherever they lie."""
    generator = torch.Generator().manual_seed(8)
    h, w = (torch.randn(n, H, generator=generator, dtype=torch.float64) for n in (N, V))
    t, g = cases.targets(8, N, V), cases.upstream(8, N)
    for ends in layouts():
        for top_p in (0.1, 0.9):
            options = {
                **cases.chain("all", 8, N, V), "mask": cases.mask(8, N), "entropy_top_p": top_p
            }  # fmt: skip
            options["bias"] = options["bias"].double()
            compare_with_one_rank(
                partial(ll.linear_token_stats, targets=t), {"hidden": h, "weight": w}, ends,
                options, outputs=values, loss=lambda stats: weighted(stats, g),
                near=partial(compare, dtype=torch.float64),
                near_gradient=partial(near_gradient, torch.float64),
            )  # fmt: skip


def dense() -> None:
    with pytest.MonkeyPatch.context() as patch:
        machine(patch, gathered=1e-9)
        head()


def rows() -> None:
    t, g = cases.targets(3, N, V), cases.upstream(3, N)
    z = torch.randn(N, V, generator=torch.Generator().manual_seed(3))
    for ends in layouts():
        for kind in ("few", "mixed", "all", "borders"):
            compare_with_one_rank(
                partial(ll.token_stats, targets=t), {"logits": z}, ends,
                {"sampling_mask": mask_of(kind, 1, t, V), "extras": FULL}, outputs=values,
                loss=lambda stats: weighted(stats, g),
                near=partial(compare, dtype=torch.float32),
                near_gradient=partial(near_gradient, torch.float32),
            )  # fmt: skip


def loss() -> None:
    for name in ("ppo", "clip_cov"):
        spec, data = spec_of(name), batch()
        size = data["weight"].shape[0]
        extra = inputs_of(spec, data)
        given = {k: data.pop(k) for k in ("hidden", "weight")}
        mask = mask_of("mixed", 1, data["targets"], size)
        ends = [(0, 1000), (1000, size), (size, size)][:WORLD]
        compare_with_one_rank(
            partial(ll.linear_policy_loss, **data, spec=spec, **extra), given, ends,
            {"sampling_mask": mask}, outputs=loss_outputs, loss=lambda out: out.loss,
            near=partial(compare, dtype=torch.float32),
            near_gradient=partial(near_gradient, torch.float32),
        )  # fmt: skip


def weight_rows() -> None:
    """Each rank has the rows of its own range, counted from its first."""
    t = cases.targets(4, N, V)
    h, w = (torch.randn(n, H, generator=torch.Generator().manual_seed(4)) for n in (N, V))
    mask = mask_of("few", 1, t, V)
    for ends in layouts():
        found = []
        for kind in ("dense", "rows"):
            own = w[mine(ends)].clone().requires_grad_()
            stats = ll.linear_token_stats(
                h, own, t, sampling_mask=mask, weight_grad=kind, **part(ends, {})
            )
            found.append(torch.autograd.grad(stats.logp.sum(), own)[0])
        assert found[1].is_sparse
        assert_bitwise_equal(found[1].to_dense(), found[0])


def sample() -> None:
    """Every rank gets the same sets, those of one rank alone."""
    n = 20
    g = torch.Generator().manual_seed(5)
    h, w = (torch.randint(-3, 4, (size, 8), generator=g).float() for size in (n, V))
    key = {"seed": 5, "step": 2, "row_ids": torch.arange(n)}
    for ends in layouts():
        for options in TRUNCATIONS:
            alone = ll.linear_sample(h, w, **key, **options)
            ours = ll.linear_sample(h, w[mine(ends)], **key, **options, **part(ends, {}))
            assert ours.sampling_mask.lists() == alone.sampling_mask.lists()
            same_on_all_ranks(ours.kept_logp)
            compare([ours.kept_logp], [alone.kept_logp], torch.float32)


def errors() -> None:
    """What is wrong is wrong on every rank; other sets on another rank are named."""
    h, w, t = torch.zeros(4, 3), torch.zeros(9, 3), torch.tensor([5, 0, 7, 1])
    ends = [(0, 4), (4, 9), (9, 9)][:WORLD]

    def call(lists: Any) -> Any:
        mask = ll.SamplingMask.from_lists(lists)
        own = w[mine(ends)]
        return ll.linear_token_stats(h, own, t, sampling_mask=mask, **part(ends, {}))

    said = refusal(ValueError, lambda: call([[5], [], [7, 9], [1]]))
    assert said == "linear_token_stats: row 2: sampling_mask has token 9, outside [0, 9)"
    said = refusal(ValueError, lambda: call([[5], [], [3], [1]]))
    assert "row 2: target 7 is outside its sampling_mask of 1 ids" in said
    said = refusal(ValueError, lambda: call([[5, RANK], [], [7], [1]]))
    assert "sampling_mask (its checksum) must be the same on every rank" in said


if __name__ == "__main__":
    run(head, likeliest, dense, rows, loss, weight_rows, sample, errors)
