"""Calls of the kernels that select tokens, for `triton_builds`."""

from __future__ import annotations

from importlib import import_module

import torch

from benchmarks.compiled.token_builds import kernels_of


def call_selection(
    n: int,
    vocab: int,
    dtype: torch.dtype,
    options: frozenset[str] = frozenset(),
    *,
    package: str = "logitless.kernels",
) -> None:
    """Tokens in each order, the k largest of them, and values that stand at quantiles. Tokens have
    no logits, and are float32 or float64."""
    room = f"{package}.tokens.selection"
    kernel = kernels_of(room)
    wide = torch.float64 if "chain" in options else torch.float32
    logp, mask, flag = torch.empty(n, dtype=wide), torch.ones(n, dtype=torch.bool), torch.zeros(1)
    keys = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    values, mean = torch.zeros(n, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    limits = import_module(f"{room}.covariance_scores").Limits(-1.5, 2.5, -0.3, 0.3)
    kernel("covariance_scores")(
        *keys, flag.long(), logp=logp, advantages=logp, mask=mask, ids=keys[1], limits=limits,
        old_logp=logp if "mask" in options else None, means=(mean, mean),
    )  # fmt: skip
    kernel("ordered_scores")(*keys, values=values, which=mask, ids=keys[1])
    kernel("random_scores")(*keys, seed=2**63 + 1, step=3)
    among, k = import_module(f"{room}.radix").Search.among, flag.long()
    search = among(*keys, k)
    kernel("radix_level")(search, 3)
    for taken in (mask, keys[1]):
        kernel("radix_take")(search, taken, flag.long())
    for search in (among(*keys, k, exact=True), among(*keys, quantiles=(0.0, 0.998), exact=True)):
        kernel("radix_level")(search, 3)
        kernel("radix_values")(search, values)
    kernel("unique_ids")(keys[0], mask, flag.long())
    kernel("gather_ids")(*keys, k)
    kernel("sort_runs")(keys[0], k)
    for last in (False, True):
        kernel("merge_runs")(*keys, k, width=2048, last=last)
