"""T12: heads whose rows have sets of tokens, gathered or dense, beside three bare products."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import Head, head_inputs, wide_dtype
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    VOCAB,
    backends_here,
    bare,
    close,
    empty_caches,
    peak,
    predicted,
    traffic,
)
from benchmarks.gpu.contact_steps.tiling import AMPLE
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place

SHAPE, TINY = (8192, 4096, VOCAB), (24, 16, 5000)
# Ids of a row -> the op of the prediction.
SIZES = {8: "forward + backward, sets of 8", 64: "", 512: ""}
# Of those the ones that backends are asked for which are not the first.
OTHERS = 64
# Numbers of gathered rows that are held at a time, in float64.
HELD = 1 << 25


def masks(place: Place) -> Cases:
    n, h, v = TINY if place.tiny else SHAPE
    inputs = functools.lru_cache(maxsize=1)(lambda: head_inputs(n, h, v, BF16, place.device))
    product: dict[str, float] = {}
    yield "bare 3", functools.partial(bare_products, place, inputs, product)
    first, *others = (name for name in backends_here(place) if name != "torch")
    for size, op in SIZES.items():
        for grad in ("dense", "rows"):
            run = functools.partial(
                masked_head, place, inputs, size, grad, op * (grad == "dense"), product, first
            )
            yield f"sets of {size}, weight_grad {grad}", run
    for backend in others:
        for grad in ("dense", "rows"):
            run = functools.partial(masked_head, place, inputs, OTHERS, grad, "", product, backend)
            yield f"sets of {OTHERS}, weight_grad {grad}, {backend}", run
    inputs.cache_clear()
    empty_caches(place)


def bare_products(place: Place, inputs: Callable[[], Head], found: dict[str, float]) -> Fields:
    x = inputs()
    z = torch.empty(len(x.hidden), len(x.weight), dtype=BF16, device=place.device)
    torch.mm(x.hidden, x.weight.t(), out=z)
    d_hidden, d_weight = torch.empty_like(x.hidden), torch.empty_like(x.weight)

    def run() -> None:
        torch.mm(x.hidden, x.weight.t(), out=z)
        torch.mm(z, x.weight, out=d_hidden)
        torch.mm(z.t(), x.hidden, out=d_weight)

    times = bare(place, run)
    found["ms"] = times["ms"]
    error = close(z[:1], x.hidden[:1].double() @ x.weight.double().t(), 2**-7)
    return {**times, "error": error}


def ids_of(x: Head, size: int) -> Tensor:  # [n, size]
    """The target and others, all of one stride apart from it."""
    v = len(x.weight)
    steps = torch.arange(size, device=x.targets.device) * (v // size)
    return (x.targets[:, None] + steps) % v


def truth(x: Head, ids: Tensor, probe: Tensor) -> dict[str, Tensor]:
    """Of all rows in float64; d_weight as its products with `probe` [H]."""
    wide = wide_dtype(x.hidden.device)
    step = max(HELD // (ids.shape[1] * x.hidden.shape[1]), 1)
    found: dict[str, list[Tensor]] = {"logp": [], "entropy": [], "d_hidden": []}
    of_weight = x.weight.new_zeros(len(x.weight), dtype=wide)
    for rows in torch.arange(len(ids), device=ids.device).split(step):
        mine, h, g = ids[rows], x.hidden[rows].to(wide), x.upstream[rows].to(wide)[:, None]
        w = x.weight[mine].to(wide)
        log_p = torch.einsum("nh,nkh->nk", h, w).log_softmax(-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1, keepdim=True)
        # of logp, whose target comes first, and of the entropy
        dz = -g * p * (1 + log_p + entropy)
        dz[:, :1] += g
        found["logp"].append(log_p[:, 0])
        found["entropy"].append(entropy[:, 0])
        found["d_hidden"].append(torch.einsum("nk,nkh->nh", dz, w))
        of_weight.index_add_(0, mine.flatten(), (dz * (h @ probe.to(wide))[:, None]).flatten())
    return {**{name: torch.cat(parts) for name, parts in found.items()}, "of_weight": of_weight}


def masked_head(
    place: Place, inputs: Callable[[], Head], size: int, grad: str, op: str,
    product: dict[str, float], backend: str,
) -> Fields:  # fmt: skip
    import logitless as ll
    from logitless.backends import registry

    support = registry.get(backend).has("sampling_mask")
    if not support.ok:
        raise Leave(support.reason)
    x = inputs()
    (n, h), v = x.hidden.shape, len(x.weight)
    ids = ids_of(x, size)
    # on the host, as an inference engine gives it
    mask = ll.SamplingMask.from_padded(ids.cpu())

    def run() -> Fields:
        leaves = x.hidden.detach().requires_grad_(), x.weight.detach().requires_grad_()
        stats = ll.linear_token_stats(
            *leaves, x.targets, sampling_mask=mask, weight_grad=grad, memory_budget=AMPLE,
            backend=backend,
        )  # fmt: skip
        d = torch.autograd.grad((stats.logp, stats.entropy), leaves, (x.upstream, x.upstream))
        logp, entropy = stats.logp.detach(), stats.entropy.detach()
        return {"logp": logp, "entropy": entropy, "d_hidden": d[0], "d_weight": d[1]}

    plan = ll.plan(
        n, h, v, x.hidden.dtype, AMPLE, one_pass=False, device=place.device, sampled_ids=n * size
    )
    found, held = peak(place, run)
    # logits of dense tiles are rounded to 16 bits
    errors = check(x, ids, found, grad, 2e-2 if plan.gathered else 6e-2)
    del found
    times, counts = bare(place, run), traffic(place, run)
    note = predicted(place, op, n, h, v) if op else {}
    ratio = {"of_bare": times["ms"] / product["ms"]} if product else {}
    return {
        **times, **note, **ratio, **counts, "errors": errors, "peak_bytes": held,
        "plan_bytes": plan.total_bytes, "gathered": plan.gathered,
    }  # fmt: skip


def check(x: Head, ids: Tensor, found: Fields, grad: str, share: float) -> dict[str, float]:
    generator = torch.Generator(x.hidden.device).manual_seed(7)
    probe = torch.randn(x.hidden.shape[1], generator=generator, device=x.hidden.device)
    right = truth(x, ids, probe)
    of_weight = right.pop("of_weight")
    d_weight = found.pop("d_weight")
    if grad == "rows":
        of_weight, d_weight = of_weight[d_weight.indices()[0]], d_weight.values()
    parts = (part.to(of_weight.dtype) @ probe.to(of_weight.dtype) for part in d_weight.split(8192))
    found["of_weight"], right["of_weight"] = torch.cat(tuple(parts)), of_weight
    return {name: close(value, right[name].double(), share) for name, value in found.items()}
