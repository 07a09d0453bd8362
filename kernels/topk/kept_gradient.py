"""d(logits) of the kept entries of some rows, as sparse rows.

Replaces, in float64, with a = g_lse - g_logp - g_entropy * H and b = -g_entropy,

    dz = p * (a + b * log(p)) + g_logp * (id == target)
    value = dz * scale * pre * (1 - (y / softcap)**2)         # the last two with a softcap
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.arrays import GRADIENT_DTYPES
from logitless.kernels.jit import row_scale_of
from logitless.kernels.launch import OPTIONS, device_of
from logitless.kernels.rows import TritonRows
from logitless.kernels.topk.kept import Kept

# Most rows keep fewer.
BLOCK = 64
NUM_WARPS = 1


@triton.jit
def _upstream(g_ptr, row):
    if g_ptr is not None:
        g = tl.load(g_ptr + row).to(tl.float64)
    else:
        g = tl.full((), 0.0, tl.float64)
    return g


@triton.jit(do_not_specialize=["n", "room"])
def kept_gradient_kernel(
    values_out_ptr,  # [entries] float32, out
    columns_out_ptr,  # [entries] int32, out
    offsets_ptr,  # [rows + 1] int64
    index_ptr,  # [rows] int64
    values_ptr,  # [n, room] float64
    ids_ptr,  # [n, room] int32
    state_ptr,  # [n, 8] float64
    targets_ptr,  # [n] int64
    row_scale_ptr,  # [n] float64 or None
    g_logp_ptr,  # [n] float32 or float64, or None, and so the next two
    g_entropy_ptr,
    g_lse_ptr,
    kept_stride,
    n,
    room,
    scale: tl.float64,
    pre: tl.float64,
    softcap: tl.float64,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(index_ptr + place)
    start = tl.load(offsets_ptr + place)
    number = tl.load(offsets_ptr + place + 1) - start
    if (row >= 0) & (row < n) & (number <= room):
        g_logp = _upstream(g_logp_ptr, row)
        g_entropy = _upstream(g_entropy_ptr, row)
        s_ptr = state_ptr + row * 8
        m = tl.load(s_ptr)
        s0 = tl.load(s_ptr + 1)
        log_s0 = tl.log(s0)
        entropy = log_s0 - tl.load(s_ptr + 2) / s0
        constant = _upstream(g_lse_ptr, row) - g_logp - g_entropy * entropy
        target = tl.load(targets_ptr + row)
        scale = row_scale_of(row_scale_ptr, row, scale)
        values_ptr += row * kept_stride
        ids_ptr += row * kept_stride
        for i in range(0, number, BLOCK):
            o = i + tl.arange(0, BLOCK)
            inside = o < number
            y = tl.load(values_ptr + o, mask=inside, other=0.0)
            ids = tl.load(ids_ptr + o, mask=inside, other=-1)
            x = (y - m) * scale
            p = tl.exp(x) * (1 / s0)
            d = tl.where(p == 0, 0.0, p * (constant - g_entropy * (x - log_s0)))
            d = (d + tl.where(ids == target, g_logp, 0.0)) * scale
            if HAS_SOFTCAP:
                t = y / softcap
                d = d * pre * (1 - t * t)
            tl.store(columns_out_ptr + start + o, ids, mask=inside)
            tl.store(values_out_ptr + start + o, d, mask=inside)


def kept_gradient(
    rows: TritonRows,
    state: Tensor,  # [n, 8] float64
    kept: Kept,
    *,
    index: Tensor,  # [rows] int64: which of the n
    offsets: Tensor,  # [rows + 1] int64, sums of their counts
    columns: Tensor,  # [entries] int32, out
    values: Tensor,  # [entries] float32, out
    g_logp: Tensor | None = None,  # [n] float32 or float64, and so the next two
    g_entropy: Tensor | None = None,
    g_lse: Tensor | None = None,
) -> None:
    """Write the entries of rows after `measure_kept`."""
    kept.check(rows, state)
    some = len(index)
    rows.check("index", index, torch.int64, shape=(some,))
    rows.check("offsets", offsets, torch.int64, shape=(some + 1,))
    rows.check("columns", columns, torch.int32, shape=(len(values),))
    rows.check("values", values, torch.float32, shape=(len(values),))
    upstream = {"g_logp": g_logp, "g_entropy": g_entropy, "g_lse": g_lse}
    for name, g in upstream.items():
        rows.check(name, g, *GRADIENT_DTYPES)
    if some == 0:
        return
    with device_of(state):
        kept_gradient_kernel[(some,)](
            values, columns, offsets, index, kept.values, kept.ids, state, rows.targets,
            rows.row_scale, *upstream.values(), kept.stride, rows.n, kept.room, rows.scale,
            rows.chain.pre, rows.chain.softcap, HAS_SOFTCAP=rows.chain.softcap != 0, BLOCK=BLOCK,
            num_warps=NUM_WARPS, **OPTIONS,
        )  # fmt: skip
