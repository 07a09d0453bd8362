"""Divergences on two or three ranks that have the same columns of both. See shards.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from tests.support.mask_cases import mask_of
from tests.support.tolerances import assert_gradients
from tests.support.workers.vocab.shards import (
    RANK,
    SLACK,
    H,
    N,
    V,
    compare,
    compare_with_one_rank,
    layouts,
    mine,
    refusal,
    run,
)
from tests.support.workers.vocab.shards import group as everyone

KINDS = {"reverse_kl": 0.5, "forward_kl": 0.5, "jsd": 0.3}
EXTRAS = ("reverse_kl", "forward_kl")
MASK = torch.arange(N) % 5 != 1
R = 3


def outputs(out: ll.Divergence) -> list[Tensor]:
    return [out.divergence, out.entropy, out.teacher_entropy, *out.extras.values()]


def weighted(g: Tensor, out: ll.Divergence) -> Tensor:
    return (out.divergence * g[0] + out.entropy * g[1]).sum()


def near_gradient(ours: Tensor, right: Tensor, whole: Tensor) -> None:
    scale = SLACK[ours.dtype] * max(1.0, float(whole.abs().max()))
    assert_gradients(ours, right, ours.dtype, scale=scale)


class Teacher:
    """Its head, of which a rank has the columns that it has of the student's."""

    def __init__(self, dtype: torch.dtype, ends: list[tuple[int, int]], how: dict[str, Any]):
        g = torch.Generator().manual_seed(5)
        shapes = (N, 9), (V, 9), (V,)
        self.hidden, self.weight, self.bias = (
            torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes
        )
        self.ends, self.how = ends, how

    def part(self, x: Tensor, group: Any) -> Tensor:
        return x if group is None else x[mine(self.ends)]

    def of_heads(self, hidden: Tensor, weight: Tensor, **own: Any) -> ll.Divergence:
        group = own.get("vocab_group")
        return ll.linear_divergence(
            hidden, weight, self.hidden, self.part(self.weight, group), MASK,
            teacher_bias=self.part(self.bias, group), **own, **self.how,
        )  # fmt: skip

    def of_logits(self, logits: Tensor, **own: Any) -> ll.Divergence:
        teacher = self.hidden @ self.part(self.weight, own.get("vocab_group")).T
        return ll.divergence(logits, teacher, MASK, **own, **self.how)


def both() -> None:
    """Of two heads and of given logits, with biases cut as the columns are."""
    generator = torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.float64):
        shapes = (N, H), (V, H), (V,), (2, N)
        hidden, weight, bias, g = (
            torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes
        )
        g[:, 12:] = 0
        for ends in layouts():
            for kind, beta in KINDS.items():
                how: dict[str, Any] = {
                    "kind": kind, "beta": beta, "extras": EXTRAS, "temperature": 1.4,
                    "softcap": 9.0, "teacher_temperature": 0.9,
                }  # fmt: skip
                teacher = Teacher(dtype, ends, how)
                for call, given, options in (
                    (teacher.of_heads, {"hidden": hidden, "weight": weight}, {"bias": bias}),
                    (teacher.of_logits, {"logits": hidden @ weight.T / 5}, {}),
                ):
                    compare_with_one_rank(
                        call, given, ends, options, outputs=outputs, loss=partial(weighted, g),
                        near=partial(compare, dtype=dtype), near_gradient=near_gradient,
                    )  # fmt: skip


def masked() -> None:
    """The same with sets of tokens, whose ids lie on any rank."""
    generator = torch.Generator().manual_seed(4)
    shapes = (N, H), (V, H), (V,), (2, N)
    hidden, weight, bias, g = (
        torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes
    )
    anyone = torch.arange(N) * 7 % V
    both_kinds = {torch.float32: ("few", "mixed"), torch.float64: ("borders", "large")}
    for dtype, all_sets in both_kinds.items():
        h, w, b = (x.to(dtype) for x in (hidden, weight, bias))
        for ends in layouts():
            for kind, beta in KINDS.items():
                for sets in all_sets:
                    how: dict[str, Any] = {
                        "kind": kind, "beta": beta, "extras": EXTRAS, "softcap": 9.0,
                        "sampling_mask": mask_of(sets, 2, anyone, V), "teacher_temperature": 0.9,
                    }  # fmt: skip
                    teacher = Teacher(dtype, ends, how)
                    for call, given, options in (
                        (teacher.of_heads, {"hidden": h, "weight": w}, {"bias": b}),
                        (teacher.of_logits, {"logits": h @ w.T / 5}, {"bias": b}),
                    ):
                        compare_with_one_rank(
                            call, given, ends, options, outputs=outputs,
                            loss=partial(weighted, g.to(dtype)),
                            near=partial(compare, dtype=dtype), near_gradient=near_gradient,
                        )  # fmt: skip


def noisy() -> None:
    """A token has its noise on whichever rank it lies, in a set or not."""
    generator = torch.Generator().manual_seed(6)
    shapes = (N, H), (V, H), (2, N)
    hidden, weight, g = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    sets = mask_of("mixed", 2, torch.arange(N) * 7 % V, V)
    for ends in layouts():
        for kind, beta in KINDS.items():
            for sampling_mask in (None, sets):
                how: dict[str, Any] = {
                    "kind": kind, "beta": beta, "extras": EXTRAS, "sampling_mask": sampling_mask,
                    "teacher_noise": 0.7, "seed": 3, "step": 4, "row_ids": torch.arange(N) * 11,
                }  # fmt: skip
                teacher = Teacher(torch.float64, ends, how)
                for call, given in (
                    (teacher.of_heads, {"hidden": hidden, "weight": weight}),
                    (teacher.of_logits, {"logits": hidden @ weight.T / 5}),
                ):
                    compare_with_one_rank(
                        call, given, ends, {}, outputs=outputs, loss=partial(weighted, g),
                        near=partial(compare, dtype=torch.float64), near_gradient=near_gradient,
                    )  # fmt: skip


def adapted() -> None:
    """An adapter of the student's, whose B is cut as weight is: of all tokens, and of sets."""
    generator = torch.Generator().manual_seed(7)
    shapes = (N, H), (V, H), (R, H), (V, R), (2, N)
    h, w, A, B, g = (torch.randn(*s, generator=generator, dtype=torch.float64) / 2 for s in shapes)
    sets = mask_of("few", 2, torch.arange(N) * 7 % V, V)
    for ends in layouts():
        for kind, beta in KINDS.items():
            for sampling_mask in (None, sets):
                how: dict[str, Any] = {
                    "kind": kind, "beta": beta, "extras": EXTRAS, "sampling_mask": sampling_mask,
                }  # fmt: skip
                teacher = Teacher(torch.float64, ends, how)

                def call(A: Tensor, B: Tensor, **own: Any) -> ll.Divergence:
                    return teacher.of_heads(adapter=(A, B, 0.5), **own)  # noqa: B023

                compare_with_one_rank(
                    call, {"hidden": h, "weight": w, "A": A, "B": B}, ends, {}, outputs=outputs,
                    loss=partial(weighted, g), near=partial(compare, dtype=torch.float64),
                    near_gradient=near_gradient,
                )  # fmt: skip


def differing() -> None:
    """One rank asks for another divergence: all are told."""
    ends = next(layouts())
    own = mine(ends)
    logits, kind = torch.zeros(N, own.stop - own.start), ("jsd", "reverse_kl")[RANK % 2]

    def call() -> Any:
        return ll.divergence(logits, logits, kind=kind, vocab_start=own.start, **everyone())

    assert "kind" in refusal(ValueError, call)


if __name__ == "__main__":
    run(both, masked, noisy, adapted, differing)
