"""T11: a token for each of few rows, as a decoding step asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import Head, check_head, head_inputs
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    VOCAB,
    bare,
    close,
    empty_caches,
    peak,
    predicted,
    traffic,
)
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place

# (rows, width, vocab)
SHAPES, TINY = ((64, 4096, VOCAB), (1024, 4096, VOCAB)), ((3, 16, 5000),)
# What is drawn from, and the op of the prediction.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "all": ({}, "draw"),
    "top_k 50": ({"top_k": 50}, "draw from the top"),
    "top_p 0.9": ({"top_p": 0.9}, "draw from the top, flat"),
    "top_k 100, top_p 0.95, min_p 0.01": (
        {"top_k": 100, "top_p": 0.95, "min_p": 0.01}, "draw from the top",
    ),
    "batch_invariant": ({"batch_invariant": True}, ""),
}  # fmt: skip


def draws(place: Place) -> Cases:
    for n, h, v in TINY if place.tiny else SHAPES:
        inputs = functools.lru_cache(maxsize=1)(
            lambda n=n, h=h, v=v: head_inputs(n, h, v, BF16, place.device)
        )
        product: dict[str, float] = {}
        yield f"{n} rows, bare product", functools.partial(bare_product, place, inputs, product)
        for name, (options, op) in WAYS.items():
            run = functools.partial(one_draw, place, inputs, options, op, product)
            yield f"{n} rows, {name}", run
        run = functools.partial(multinomial, place, inputs, product)
        yield f"{n} rows, softmax and multinomial", run
        inputs.cache_clear()
        empty_caches(place)


def bare_product(place: Place, inputs: Callable[[], Head], found: dict[str, float]) -> Fields:
    x = inputs()
    z = torch.empty(len(x.hidden), len(x.weight), dtype=BF16, device=place.device)
    times = bare(place, lambda: torch.mm(x.hidden, x.weight.t(), out=z))
    found["ms"] = times["ms"]
    error = close(z[:1], x.hidden[:1].double() @ x.weight.double().t(), 2**-7)
    return {**times, "error": error, "gb_s": x.weight.nbytes / times["ms"] / 1e6}


def one_draw(
    place: Place, inputs: Callable[[], Head], options: dict[str, Any], op: str,
    product: dict[str, float],
) -> Fields:  # fmt: skip
    import logitless as ll

    x = inputs()
    n, h, v = len(x.hidden), x.hidden.shape[1], len(x.weight)
    ids = torch.arange(n, device=place.device)

    def run() -> Any:
        return ll.linear_sample(x.hidden, x.weight, seed=1, step=2, row_ids=ids, **options)

    drawn, held = peak(place, run)
    scored = replace(x, targets=drawn.token, upstream=torch.zeros_like(x.upstream), known={})
    errors = check_head(scored, {"logp": drawn.logp, "entropy": drawn.entropy})
    sets = drawn.sampling_mask.lists()
    for token, kept in zip(drawn.token.tolist(), sets, strict=True):
        if kept and token not in kept:
            raise AssertionError(f"token {token} is not in the set that it was drawn from")
    times, counts = bare(place, run), traffic(place, run)
    note = predicted(place, op, n, h, v) if op else {}
    ratio = {"of_bare": times["ms"] / product["ms"]} if product else {}
    return {
        **times, **note, **ratio, **counts, "errors": errors, "peak_bytes": held,
        "largest_set": max(map(len, sets)),
    }  # fmt: skip


def multinomial(place: Place, inputs: Callable[[], Head], product: dict[str, float]) -> Fields:
    """What a user would write."""
    x = inputs()

    def run() -> Tensor:
        z = x.hidden @ x.weight.t()
        return torch.multinomial(z.float().softmax(-1), 1)

    if place.cuda and 14 * len(x.hidden) * len(x.weight) > 0.9 * torch.cuda.mem_get_info()[0]:
        raise Leave("no room for full probabilities")
    times = bare(place, run)
    ratio = {"of_bare": times["ms"] / product["ms"]} if product else {}
    return {**times, **ratio}
