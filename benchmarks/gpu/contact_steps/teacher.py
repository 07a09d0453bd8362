"""T10: a student beside a teacher, of given logits and of two heads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import (
    CHECKED,
    Head,
    Truth,
    few_rows,
    head_inputs,
    wide_dtype,
    worst,
)
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    F16,
    F32,
    HEADS,
    ROWS,
    TINY_HEADS,
    TINY_ROWS,
    backends_here,
    bare,
    clock,
    empty_caches,
    flops_of,
    peak,
    predicted,
)
from benchmarks.gpu.contact_steps.tiling import AMPLE
from benchmarks.gpu.contact_worker import Cases, Fields, Place
from benchmarks.gpu.predict.options import MASKED

KINDS = ("reverse_kl", "forward_kl", "jsd")
BETA = 0.3
# Sizes around the pieces of both kernels, and every way for two storage types to differ.
SHAPES = ((1, 1), (3, 127), (2, 4097), (5, 8192), (33, 9001), (16, 50_257), (2, 151_936))
DTYPES = ((BF16, BF16), (BF16, F32), (F32, F16), (F32, F32))


@dataclass(frozen=True)
class Pair:
    z: Tensor  # [N, V]
    teacher: Tensor  # [N, V]
    upstream: Tensor  # [2, N]: of the divergence, and of the entropy

    @classmethod
    def of(cls, n: int, v: int, dtypes: Any, device: str, seed: int = 0) -> Pair:
        """The teacher's logits are the student's and noise."""
        g = torch.Generator(device).manual_seed(seed)
        z = torch.empty(n, v, dtype=dtypes[0], device=device).normal_(0, 3, generator=g)
        teacher = torch.empty(n, v, dtype=dtypes[1], device=device).normal_(0, 1, generator=g)
        return cls(z, teacher.add_(z), torch.randn(2, n, generator=g, device=device))


def beta_of(kind: str) -> float:
    return BETA if kind == "jsd" else 0.5


def truth(x: Pair, few: Tensor, kind: str) -> Truth:
    """Of a few rows in float64: the formula itself, and its gradient by autograd."""
    z, beta = x.z[few].double().requires_grad_(), beta_of(kind)
    log_p, log_q = z.log_softmax(-1), x.teacher[few].double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.log((1 - beta) * p + beta * q)
    value = {
        "reverse_kl": lambda: (p * (log_p - log_q)).sum(-1),
        "forward_kl": lambda: (q * (log_q - log_p)).sum(-1),
        "jsd": lambda: (
            (1 - beta) * (p * (log_p - log_m)).sum(-1) + beta * (q * (log_q - log_m)).sum(-1)
        ),
    }[kind]()
    entropy = -(p * log_p).sum(-1)
    up = x.upstream[:, few].double()
    (dz,) = torch.autograd.grad((up[0] * value + up[1] * entropy).sum(), z)
    return {"divergence": value.detach(), "entropy": entropy.detach(), "dlogits": dz}


def teacher(place: Place) -> Cases:
    names, shapes = backends_here(place), SHAPES[:4] if place.tiny else SHAPES
    for backend in names:
        for kind in KINDS:
            yield f"right {backend} {kind}", functools.partial(right, place, backend, kind, shapes)
    x = Pair.of(*(TINY_ROWS if place.tiny else ROWS), (BF16, BF16), place.device)
    for kind in ("reverse_kl", "jsd"):
        for backend in names:
            for run in (forward, backward):
                key = f"{run.__name__} {kind} {backend}"
                yield key, functools.partial(run, place, backend, kind, x)
    # torch's takes too much memory of so many logits
    for backend in (name for name in names if name != "torch"):
        noisy = functools.partial(noisy_forward, place, backend, x)
        yield f"forward of a noisy teacher {backend}", noisy
    del x
    empty_caches(place)
    for kind in ("reverse_kl", "jsd"):
        yield f"two heads {kind}", functools.partial(two_heads, place, names[0], kind)
    masked = functools.partial(two_heads, place, names[0], "reverse_kl", masked=True)
    yield "two heads reverse_kl, 60% of rows", masked


def call(x: Pair, z: Tensor, kind: str, backend: str) -> Any:
    import logitless as ll

    return ll.divergence(z, x.teacher, kind=kind, beta=beta_of(kind), backend=backend)


def right(place: Place, backend: str, kind: str, shapes: Any) -> Fields:
    errors: list[float] = []
    for i, (n, v) in enumerate(shapes):
        for dtypes in DTYPES:
            if place.left < 1 and errors:
                break
            x = Pair.of(n, v, dtypes, place.device, seed=i)
            leaf, everywhere = x.z.detach().requires_grad_(), torch.arange(n, device=place.device)
            out = call(x, leaf, kind, backend)
            (dz,) = torch.autograd.grad((out.divergence, out.entropy), leaf, list(x.upstream))
            found = {"divergence": out.divergence, "entropy": out.entropy, "dlogits": dz}
            errors.append(compared(found, truth(x, everywhere, kind), x.z.dtype))
    return {"error": max(errors), "shapes": len(errors)}


def compared(found: Truth, right: Truth, dtype: torch.dtype) -> float:
    """As `worst`, which knows values by the name of an entropy."""
    share = worst({"dlogits": found["dlogits"]}, right, dtype) if "dlogits" in found else 0.0
    values = (name for name in ("divergence", "entropy") if name in found)
    return max(
        [share, *(worst({"entropy": found[x]}, {"entropy": right[x]}, dtype) for x in values)]
    )


def noted(place: Place, op: str, x: Pair, found: Fields, passes: int) -> Fields:
    n, v = x.z.shape
    rate = passes * x.z.numel() * x.z.itemsize / found["ms"] / 1e6
    return {**found, "gb_s": rate, **predicted(place, op, n, 1, v, x.z.dtype)}


def forward(place: Place, backend: str, kind: str, x: Pair) -> Fields:
    few = few_rows(len(x.z), CHECKED).to(place.device)

    @torch.no_grad()
    def run() -> Any:
        return call(x, x.z, kind, backend)

    out, held = peak(place, run)
    values = {"divergence": out.divergence[few], "entropy": out.entropy[few]}
    error, mixed = compared(values, truth(x, few, kind), x.z.dtype), kind == "jsd"
    del out
    op = "two rows forward, jsd" if mixed else "two rows forward"
    found = noted(place, op, x, bare(place, run), 4 if mixed else 2)
    return {**found, "error": error, "peak_bytes": held}


@torch.no_grad()
def noisy_forward(place: Place, backend: str, x: Pair) -> Fields:
    """The forward with noise on the teacher's logits, which torch makes too for a few rows."""
    import logitless as ll
    from logitless.backends.row_kernels.noise import RowNoise

    ids = torch.arange(len(x.z), device=place.device)
    key: dict[str, Any] = {"teacher_noise": 0.5, "seed": 5, "step": 2, "row_ids": ids}

    def run() -> Any:
        return ll.divergence(x.z, x.teacher, backend=backend, **key)

    few = few_rows(len(x.z), CHECKED).to(place.device)
    sizes = torch.full((len(few),), 0.5, dtype=torch.float64, device=place.device)
    noise = RowNoise(5, 2, ids[few], sizes).of_columns(x.z.shape[1])
    of_few = Pair(x.z[few], x.teacher[few].double() + noise, x.upstream[:, few])
    with torch.enable_grad():
        right = truth(of_few, torch.arange(len(few), device=place.device), "reverse_kl")
    out, held = peak(place, run)
    values = {"divergence": out.divergence[few], "entropy": out.entropy[few]}
    error = compared(values, right, x.z.dtype)
    del out
    found = noted(place, "two rows forward, noisy teacher", x, bare(place, run), 2)
    return {**found, "error": error, "peak_bytes": held}


def backward(place: Place, backend: str, kind: str, x: Pair) -> Fields:
    few = few_rows(len(x.z), CHECKED).to(place.device)
    leaf = x.z.detach().requires_grad_()

    def prepare() -> Any:
        return call(x, leaf, kind, backend)

    def run(out: Any) -> Tensor:
        up = [g.to(out.entropy.dtype) for g in x.upstream]
        found: Tensor = torch.autograd.grad((out.divergence, out.entropy), leaf, up)[0]
        return found

    error = compared({"dlogits": run(prepare())[few]}, truth(x, few, kind), x.z.dtype)
    return {**noted(place, "two rows backward", x, clock(place, run, prepare), 3), "error": error}


def two_heads(place: Place, backend: str, kind: str, *, masked: bool = False) -> Fields:
    """Forward and backward as planned, of a teacher of the student's size."""
    import logitless as ll

    n, h, v = TINY_HEADS[0] if place.tiny else HEADS[1]
    x = head_inputs(n, h, v, BF16, place.device)
    noise = torch.Generator(place.device).manual_seed(2)
    others = [
        y + 0.1 * y.std() * torch.randn(y.shape, generator=noise, device=y.device).to(y.dtype)
        for y in (x.hidden, x.weight)
    ]

    # those of `few_rows` are inside
    inside = torch.arange(n, device=place.device) % 5 < 5 * MASKED if masked else None

    def run() -> tuple[Any, Tensor]:
        hidden = x.hidden.detach().requires_grad_()
        weight = x.weight.detach().requires_grad_()
        out = ll.linear_divergence(
            hidden, weight, others[0], others[1], inside, kind=kind, beta=beta_of(kind),
            memory_budget=AMPLE, backend=backend,
        )  # fmt: skip
        return out, torch.autograd.grad(out.divergence, (hidden, weight), x.upstream)[0]

    (out, d_hidden), held = peak(place, run)
    few = few_rows(n, CHECKED).to(place.device)
    got = {"divergence": out.divergence.detach()[few], "d_hidden": d_hidden[few]}
    errors = errors_of_heads(got, x, others, few, kind)
    del out, d_hidden
    found = flops_of(bare(place, run), 8.0 * n * h * v * (MASKED if masked else 1.0))
    op = "two heads, 60% of rows" if masked else "two heads, all kept"
    note = predicted(place, op, n, h, v) if kind != "jsd" else {}
    return {**found, "errors": errors, "peak_bytes": held, **note}


def errors_of_heads(
    got: Truth, x: Head, others: Sequence[Tensor], few: Tensor, kind: str
) -> dict[str, float]:
    """Of the largest true value; raises for one that products rounded to 16 bits do not explain."""
    up = torch.stack([x.upstream[few], torch.zeros_like(x.upstream[few])])

    def values(dtype: torch.dtype) -> Truth:
        heads = ((x.hidden, x.weight), others)
        z, q = (hidden[few].to(dtype) @ weight.to(dtype).t() for hidden, weight in heads)
        found = truth(Pair(z, q, up), torch.arange(len(few), device=few.device), kind)
        d_hidden = found["dlogits"].to(dtype) @ x.weight.to(dtype)
        return {"divergence": found["divergence"], "d_hidden": d_hidden.double()}

    want, plain = values(wide_dtype(few.device)), values(x.hidden.dtype)
    errors = {}
    for name, right in want.items():
        scale = right.abs().max().clamp_min(1e-30)
        own = float((plain[name] - right).abs().max() / scale)
        errors[name] = float((got[name].double() - right).abs().max() / scale)
        allowed = 4 * own + torch.finfo(x.hidden.dtype).eps
        if not errors[name] <= allowed:
            raise AssertionError(f"{name} is off by {errors[name]:.2e}, allowed {allowed:.2e}")
    return errors
