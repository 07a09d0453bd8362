"""A head whose rows were sampled under top-k, top-p or min-p: softmax over sets of a few tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

import logitless as ll
from benchmarks.cases import calls
from benchmarks.cases.contenders.ours import our_masked_head
from benchmarks.cases.inputs import HeadInputs, generator, head_inputs
from benchmarks.harness.case import Call, Case, Expected, Oracle, Results
from benchmarks.harness.correctness import f64
from logitless import reference

# Ids of a set: from 1 to 64 with this mean, as top-p leaves of a peaked policy; and 512, which is
# what inference engines bound sets by.
FEW, MOST_OF_FEW, MANY = 8, 64, 512


@dataclass(frozen=True)
class MaskedHeadInputs(HeadInputs):
    sampling_mask: ll.SamplingMask

    def first(self, n: int) -> MaskedHeadInputs:
        kept = self.sampling_mask.rows(range(min(n, len(self.sampling_mask))))
        return MaskedHeadInputs(**vars(super().first(n)), sampling_mask=kept)


@functools.lru_cache(maxsize=2)
def masked_head(case: Case, size: int) -> MaskedHeadInputs:
    """Each row's target and tokens drawn from all of the vocabulary: no row of weight is found in a
    cache because another has used it."""
    x, g = head_inputs(case), generator(case)
    sizes = torch.full((case.rows,), min(size, case.vocab))
    if size == FEW:
        # geometric: most sets are small
        u = torch.rand(case.rows, generator=g, device=case.device).cpu()
        sizes = (u.log() / torch.tensor(1 - 1 / FEW).log()).long().add(1).clamp(max=MOST_OF_FEW)
    lists = []
    for target, n in zip(x.targets.tolist(), sizes.tolist(), strict=True):
        others = torch.randint(case.vocab, (n - 1,), generator=g, device=case.device)
        lists.append(sorted({target, *others.tolist()}))
    return MaskedHeadInputs(**vars(x), sampling_mask=ll.SamplingMask.from_lists(lists))


def masked_both(function: Any, x: MaskedHeadInputs) -> Call:
    return calls.head_both(function, x, x.sampling_mask)


def masked_oracle(x: MaskedHeadInputs) -> Oracle:
    h, w, targets = f64(x.hidden), f64(x.weight), x.targets.cpu().numpy()
    sets, up = x.sampling_mask.lists(), f64(x.upstream)
    values = reference.linear_token_stats(h, w, targets, sets=sets)
    dhidden, dweight, _ = reference.linear_token_stats_backward(
        h, w, targets, sets=sets, g_logp=up, g_entropy=up
    )

    def expected(_: Results) -> Expected:
        return {**values, "dhidden": dhidden, "dweight": dweight}

    return expected


def masked_floors(x: MaskedHeadInputs) -> dict[str, Call]:
    """What the whole vocabulary costs; what writing a dense d_weight costs, whoever makes it; and
    one pass over the rows of weight that the sets name."""
    ids = torch.as_tensor(x.sampling_mask.token_ids, device=x.weight.device)
    return {
        "three bare products": calls.products(x, (len(x.hidden), len(x.hidden))),
        "zeros of d_weight": Call(lambda _: {"zeros": torch.zeros_like(x.weight)}),
        "gather of the sets' rows": Call(lambda _: {"rows": x.weight.index_select(0, ids)}),
    }


def masked_variants(x: MaskedHeadInputs) -> dict[str, Call]:
    as_rows = masked_both(functools.partial(our_masked_head, weight_grad="rows"), x)

    def dense(found: Results) -> Results:
        return {name: value.to_dense() for name, value in found.items()}

    def frozen(_: None) -> Results:
        hidden = calls.leaf(x.hidden)
        results = our_masked_head(hidden, x.weight, x.targets, x.sampling_mask)
        return {
            **calls.detached(results),
            **calls.gradients(results, x.upstream, {"hidden": hidden}),
        }

    return {
        "logitless, d_weight as rows": Call(as_rows.run, results=dense),
        "logitless, frozen head": Call(frozen),
    }


def masked_bytes(size: int, s: Case) -> dict[str, int]:
    entries = s.rows * min(size, s.vocab) * s.width * s.itemsize
    hidden, weight = (n * s.width * s.itemsize for n in (s.rows, s.vocab))
    return {
        "read the sets' rows of weight, forward and for dhidden": 2 * entries,
        "read hidden, forward and for dweight": 2 * hidden,
        "write dhidden": hidden,
        "write dweight": weight,
    }


def masked_flops(size: int, s: Case) -> float:
    return 3 * 2.0 * s.rows * min(size, s.vocab) * s.width
