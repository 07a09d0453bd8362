"""A student's rows beside a teacher's as NumPy arrays, and the emulated kernels run on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.simt import problem as rows
from tests.simt.problem import NO_ERROR, Array, Problem, exported, like, tiles

OUTPUTS = ("entropy", "teacher_entropy", "reverse_kl", "forward_kl")
KINDS = ("reverse_kl", "forward_kl", "jsd")
BETA = 0.3


@dataclass
class Pair:
    student: Problem
    teacher: Problem
    noise: dict[str, Any] | None = None  # as the oracle has it
    start: int = 0  # token of the first column

    @property
    def n(self) -> int:
        return self.student.n

    @property
    def vocab(self) -> int:
        return self.student.vocab

    def kernels(self) -> Any:
        return rows.module.CudaPair(self.student.rows(), self.teacher.rows())

    def noise_there(self) -> Any:
        """As the kernels take it."""
        if self.noise is None:
            return None
        return rows.module.CudaNoise(**self.noise, start=self.start)

    def row(self, i: int) -> Pair:
        noise = self.noise and {
            name: x[i : i + 1].copy() if isinstance(x, np.ndarray) else x
            for name, x in self.noise.items()
        }
        return Pair(self.student.row(i), self.teacher.row(i), noise, self.start)


@dataclass
class PairResult:
    outputs: dict[str, Array]
    state: Array  # [N, 8]
    sums: Array  # [N, 2]
    flag: int


def pair(
    n: int, vocab: int, dtypes: tuple[str, str], kinds: tuple[str, str] = ("plain", "plain")
) -> Pair:
    """Two problems, the second of another seed."""
    own, other = (
        rows.problem(n, vocab, dtype, kind, seed)
        for seed, (dtype, kind) in enumerate(zip(dtypes, kinds, strict=True))
    )
    return Pair(own, other)


def noise_of_rows(n: int) -> dict[str, Any]:
    """For a Pair: every third row has none."""
    sizes = np.random.default_rng(3).uniform(0.2, 2, n)
    sizes[1::3] = 0
    row_ids = np.arange(n) * 1_000_003 - 5
    return {"sizes": sizes, "row_ids": row_ids, "seed": 2**64 - 3, "step": 2**34 - 1}


def workspace(p: Pair, width: int) -> Array:
    return np.zeros(rows.module.CudaPair.workspace_bytes(p.n, width), np.uint8)


def tiles_of(p: Pair, cuts: tuple[int, ...]) -> list[tuple[Any, Any, Array, dict[str, Any]]]:
    """Of each tile the student's, the teacher's, workspace, and where it starts, with noise."""
    return [
        (
            exported(p.student.logits[..., tile], p.student.dtype),
            exported(p.teacher.logits[..., tile], p.teacher.dtype),
            workspace(p, tile.stop - tile.start),
            {"start": tile.start, "noise": p.noise_there()},
        )
        for tile in tiles(p.vocab, cuts)
    ]


def stats(
    p: Pair, *, cuts: tuple[int, ...] = (), row_ids: Array | None = None, beta: float = BETA
) -> PairResult:
    """Everything that the forward of any kind has."""
    kernels, state, sums = p.kernels(), np.full((p.n, 8), np.nan), np.full((p.n, 2), np.nan)
    parts = tiles_of(p, cuts)
    for own, other, memory, at in parts:
        kernels.forward(own, other, state, memory, **at, first=at["start"] == 0)
    for own, other, memory, at in parts:
        kernels.mix(
            own, other, state, sums, memory, beta=beta, **at, first=at["start"] == 0
        )  # fmt: skip
    outputs = {name: np.full(p.n, np.nan, np.float32) for name in OUTPUTS}
    flag = np.full(1, NO_ERROR, np.int64)
    kernels.finalize(state, error=flag, row_ids=row_ids, **outputs)
    return PairResult(outputs, state, sums, int(flag[0]))


def gradient(
    p: Pair,
    result: PairResult,
    kind: str,
    upstream: dict[str, Array],
    *,
    cuts: tuple[int, ...] = (),
    in_place: bool = False,
    beta: float = BETA,
) -> Array:
    """d(logits) as stored, shaped like them; `in_place` works on a copy of the same strides."""
    student = p.student
    if in_place:
        logits = like(student.logits)
        logits[...] = student.logits
        student = Problem(student.dtype, logits, student.targets, student.options, student.mask)
    p = replace(p, student=student)
    out = student.logits
    if not in_place:
        out = np.full(out.shape, 0x7E7E, out.dtype)
    kernels = p.kernels()
    for (own, other, memory, at), tile in zip(
        tiles_of(p, cuts), tiles(p.vocab, cuts), strict=True
    ):  # fmt: skip
        kernels.gradient(
            own, other, result.state, exported(out[..., tile], student.dtype), memory, kind=kind,
            beta=beta, sums=result.sums if kind == "jsd" else None, **at, **upstream,
        )  # fmt: skip
    return out


def upstream(n: int, dtype: Any = np.float64) -> dict[str, Array]:
    """Gradients of both signs; every fourth row has none, and others have one of the two."""
    g = np.random.default_rng(7).standard_normal((2, n)).astype(dtype)
    g[:, ::4] = 0
    g[0, 1::4] = 0
    return {"g_divergence": g[0].copy(), "g_entropy": g[1].copy()}
