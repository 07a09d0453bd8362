"""Kernels of two softmaxes in torch's own operations, for devices: csrc/core/divergence.h says what
a state holds. A tile is worked on in pieces, in float32; sums are float64, and nothing waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends.row_kernels.errors import flag_temperatures, lower, watched
from logitless.backends.row_kernels.rows import STATE, Rows

# Entries of a piece: some eight arrays of them live at a time, 128 MiB in all.
PIECE = 1 << 22
SIDE = STATE // 2


class _Side(NamedTuple):
    """[n] float64 each: the largest y, sum e^x, sum x e^x, sum e^x (x - the other's x)."""

    m: Tensor
    s0: Tensor
    s1: Tensor
    gap: Tensor


class _Normals(NamedTuple):
    """[n, 1] float32 each: what turns y into a log-prob, (y - m) * scale - log_s."""

    m: Tensor
    scale: Tensor | float
    log_s: Tensor

    def log_probs(self, y: Tensor) -> Tensor:
        return (y - self.m) * self.scale - self.log_s


def forward(
    rows: Rows, teacher: Rows, own: Tensor, other: Tensor, *, state: Tensor, start: int, first: bool
) -> None:
    scales = _scales(rows), _scales(teacher)
    if first:
        _empty(state)
    for columns in _pieces(rows.n, own.shape[-1]):
        y, z = (_y(side, tile, start, columns) for side, tile in ((rows, own), (teacher, other)))
        part = _moments(rows, teacher, y, z)
        _write(state, _merged(_sides(state), part, *scales))


def merge(rows: Rows, teacher: Rows, parts: Tensor, state: Tensor) -> None:
    scales = _scales(rows), _scales(teacher)
    _empty(state)
    for part in parts:
        _write(state, _merged(_sides(state), _sides(part), *scales))


def mix(
    rows: Rows, teacher: Rows, own: Tensor, other: Tensor, *, state: Tensor, sums: Tensor,
    beta: float, start: int, first: bool,
) -> None:  # fmt: skip
    if first:
        sums.zero_()
    normals = _normals(rows, teacher, state)
    for columns in _pieces(rows.n, own.shape[-1]):
        y, z = (_y(side, tile, start, columns) for side, tile in ((rows, own), (teacher, other)))
        log_p, log_q = normals[0].log_probs(y), normals[1].log_probs(z)
        odds = _odds(log_p, log_q, beta)
        of_mix = (
            _expected(log_p, torch.nn.functional.logsigmoid(odds) - math.log1p(-beta)),
            _expected(log_q, torch.nn.functional.logsigmoid(-odds) - math.log(beta)),
        )
        found = torch.stack(of_mix, dim=1)
        sums += found if rows.mask is None else torch.where(rows.mask[:, None], found, 0.0)


def finalize(
    rows: Rows, teacher: Rows, state: Tensor, *, row_ids: Tensor | None = None, **outputs: Tensor
) -> None:
    """`outputs`: [n] each, by name."""
    student, others = _sides(state)
    ids = torch.arange(rows.n, device=state.device) if row_ids is None else row_ids
    with watched(rows.op, state.device, 0) as flag:
        for side in (rows, teacher):
            if side.row_scale is not None:
                flag_temperatures(flag, side.row_scale, rows.mask, row_ids)
        kind = torch.where(_wrong(others.m), 6, 0)
        for number, wrong in ((3, -math.inf), (2, math.nan), (1, math.inf)):
            found = student.m.isnan() if math.isnan(wrong) else student.m == wrong
            kind = torch.where(found, number, kind)
        if rows.mask is not None:
            kind = torch.where(rows.mask, kind, 0)
        lower(flag, kind != 0, ids, kind)
    for name, value in _values(student, others).items():
        value = torch.where(kind != 0, math.nan, value)
        outputs[name].copy_(value if rows.mask is None else torch.where(rows.mask, value, 0.0))


def gradient(
    rows: Rows, teacher: Rows, own: Tensor, other: Tensor, *, state: Tensor, out: Tensor,
    start: int, kind: str, beta: float, sums: Tensor | None, g_divergence: Tensor | None,
    g_entropy: Tensor | None,
) -> None:  # fmt: skip
    """dz = p (a + b log p + c w) + t q, with w = log p - log q, or of jsd log p - log mix."""
    zeros = state.new_zeros(rows.n)
    of_divergence, of_entropy = (zeros if g is None else g for g in (g_divergence, g_entropy))
    served = (of_divergence != 0) | (of_entropy != 0)
    if rows.mask is not None:
        served &= rows.mask
    a, b, c, t = _coefficients(_sides(state), kind, beta, sums, of_divergence, of_entropy)
    normals = _normals(rows, teacher, state)
    factor = _narrow(_scales(rows)) * (rows.pre if rows.softcap else 1.0)
    for columns in _pieces(rows.n, own.shape[-1]):
        y, z = (_y(side, tile, start, columns) for side, tile in ((rows, own), (teacher, other)))
        log_p, log_q = normals[0].log_probs(y), normals[1].log_probs(z)
        d = _narrow(a) + _narrow(b) * log_p
        if kind == "reverse_kl":
            d = d + _product(_narrow(c), log_p - log_q)
        elif kind == "jsd":
            share = torch.nn.functional.logsigmoid(_odds(log_p, log_q, beta))
            d = d + _narrow(c) * (share - math.log1p(-beta))
        p = log_p.exp()
        # by choice: a gap may be anything where p has no mass
        d = torch.where(p > 0, d * p, 0.0)
        if kind == "forward_kl":
            d = d + _product(_narrow(t), log_q.exp())
        d = d * factor
        if rows.softcap:
            d = d * (1 - (y / rows.softcap) ** 2)
        d = torch.where(served[:, None], d, 0.0)
        out[..., columns].copy_(d.view(*out.shape[:-1], -1))


def _pieces(n: int, width: int) -> Iterator[slice]:
    step = max(1, PIECE // max(n, 1))
    return (slice(a, min(a + step, width)) for a in range(0, width, step))


def _narrow(x: Tensor | float) -> Any:
    """[n, 1] float32, of [n]."""
    return x.float()[:, None] if isinstance(x, Tensor) else x


def _scales(rows: Rows) -> Tensor | float:
    scale: Tensor | float = rows.scale if rows.row_scale is None else rows.row_scale
    return scale


def _y(rows: Rows, tile: Tensor, start: int, columns: slice) -> Tensor:
    """[n, columns] float32: raw plus bias, capped."""
    y = tile[..., columns].float().reshape(rows.n, -1)
    if rows.bias is not None:
        y = y + rows.bias[start + columns.start : start + columns.stop]
    return rows.softcap * (y * (rows.pre / rows.softcap)).tanh() if rows.softcap else y


def _empty(state: Tensor) -> None:
    state.zero_()
    state[:, [0, SIDE]] = -math.inf


def _sides(state: Tensor) -> tuple[_Side, _Side]:
    m, s0, s1, gap, *other = state.unbind(-1)
    return _Side(m, s0, s1, gap), _Side(*other)


def _write(state: Tensor, sides: tuple[_Side, _Side]) -> None:
    torch.stack((*sides[0], *sides[1]), dim=-1, out=state)


def _moments(rows: Rows, teacher: Rows, y: Tensor, z: Tensor) -> tuple[_Side, _Side]:
    maxima, logs = [], []
    for side, values in ((rows, y), (teacher, z)):
        m = values.amax(-1, keepdim=True)
        # of columns without any mass, from 0: they are -inf still
        logs.append((values - torch.where(m == -math.inf, 0.0, m)) * _narrow(_scales(side)))
        maxima.append(m[:, 0].double())
    x, u = logs
    return _side(maxima[0], x, u), _side(maxima[1], u, x)


def _side(m: Tensor, x: Tensor, other: Tensor) -> _Side:
    s0 = x.exp().sum(-1, dtype=torch.float64)
    return _Side(m, s0, _expected(x, x), _expected(x, x - other))


def _expected(x: Tensor, values: Tensor) -> Tensor:
    """sum e^x values, [n] float64: a column without mass adds nothing."""
    p = x.exp()
    return torch.where(p > 0, p * values, 0.0).sum(-1, dtype=torch.float64)


def _merged(
    a: tuple[_Side, _Side], b: tuple[_Side, _Side], scale: Tensor | float, teacher: Tensor | float
) -> tuple[_Side, _Side]:
    """As `merged` of csrc/core/divergence.h."""
    maxima = [torch.maximum(x.m, y.m) for x, y in zip(a, b, strict=True)]
    sums: list[list[Tensor]] = [[], []]
    for part in (a, b):
        shifts = [
            torch.where(side.s0 == 0, 0.0, (side.m - m) * by)
            for side, m, by in zip(part, maxima, (scale, teacher), strict=True)
        ]
        for i, side in enumerate(part):
            sums[i].append(_shifted(side, shifts[i], shifts[1 - i]))
    student, others = (
        _Side(m, *(x + y).unbind(-1)) for m, (x, y) in zip(maxima, sums, strict=True)
    )
    return student, others


def _shifted(part: _Side, own: Tensor, other: Tensor) -> Tensor:  # [n, 3]
    mass = own.exp() * part.s0
    gap = own.exp() * (part.gap + (own - other) * part.s0)
    # by choice: a gap of inf may have no mass left
    gap = torch.where(mass != 0, gap, 0.0)
    return torch.stack((mass, own.exp() * (part.s1 + own * part.s0), gap), dim=-1)


def _normals(rows: Rows, teacher: Rows, state: Tensor) -> tuple[_Normals, _Normals]:
    student, others = (
        _Normals(_narrow(side.m), _narrow(_scales(of)), _narrow(side.s0.log()))
        for side, of in zip(_sides(state), (rows, teacher), strict=True)
    )
    return student, others


def _odds(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """The log of (1 - beta) p over beta q."""
    return log_p - log_q + (math.log1p(-beta) - math.log(beta))


def _product(c: Tensor, x: Tensor) -> Tensor:
    """c x, and 0 of rows where c is: x may be infinite."""
    return torch.where(c != 0, c * x, 0.0)


def _wrong(m: Tensor) -> Tensor:
    return ~m.isfinite()


def _values(student: _Side, others: _Side) -> dict[str, Tensor]:
    log_s, log_t = student.s0.log(), others.s0.log()
    return {
        "entropy": log_s - student.s1 / student.s0,
        "teacher_entropy": log_t - others.s1 / others.s0,
        "reverse_kl": (student.gap / student.s0 + (log_t - log_s)).clamp(min=0),
        "forward_kl": (others.gap / others.s0 + (log_s - log_t)).clamp(min=0),
    }


def _coefficients(
    sides: tuple[_Side, _Side], kind: str, beta: float, sums: Tensor | None, g: Tensor,
    g_entropy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `pair_gradient` of csrc/core/divergence.h."""
    values = _values(*sides)
    a, b = -g_entropy * values["entropy"], -g_entropy
    none = torch.zeros_like(a)
    if kind == "forward_kl":
        return a + g, b, none, -g
    if kind == "reverse_kl":
        return a - _product(g, values["reverse_kl"]), b, g, none
    assert sums is not None
    return a - g * (1 - beta) * sums[:, 0], b, g * (1 - beta), none
