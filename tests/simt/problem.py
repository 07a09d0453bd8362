"""Row problems as NumPy arrays, and the emulated kernels run on them. No torch: under ASan.

What a kernel may read or write is exactly as large as it must be, so that the byte after it is
poisoned by the address sanitizer.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
STORAGE = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}
REALS = (
    "logp", "entropy", "lse", "varentropy", "sum_p2", "log_sum_p2", "mean_logit", "entropy_change",
)  # fmt: skip
NO_ERROR = np.iinfo(np.int64).max
# The kernels' module, set by the program that loads it.
module: Any = None


class Bfloat16:
    """An array of uint16 that calls itself bfloat16 to DLPack, which NumPy cannot."""

    def __init__(self, bits: Array) -> None:
        self.bits = bits

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.bits.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.bits.__dlpack__(**options)
        api = ctypes.pythonapi
        name, pointer = api.PyCapsule_GetName, api.PyCapsule_GetPointer
        name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        title = name(capsule)
        # The type's code follows the data pointer, device and rank; version 1 has 32 bytes before.
        code = pointer(capsule, title) + 20 + 32 * title.endswith(b"_versioned")
        ctypes.c_uint8.from_address(code).value = 4
        return capsule


def stored(values: Array, dtype: str) -> Array:
    """Rounded to the dtype; bfloat16 as its bits."""
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return values.astype(STORAGE[dtype])
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def exact(array: Array, dtype: str) -> Array:
    """float64, without rounding."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def exported(array: Array, dtype: str) -> Any:
    return Bfloat16(array) if dtype == "bfloat16" else array


@dataclass
class Problem:
    dtype: str
    logits: Array  # [N, V] or [B, T, V], as stored
    targets: Array  # [N] int64
    options: dict[str, Any] = field(default_factory=dict)  # the chain, as the oracle takes it
    mask: Array | None = None  # [N] bool

    @property
    def n(self) -> int:
        return len(self.targets)

    @property
    def vocab(self) -> int:
        return int(self.logits.shape[-1])

    @property
    def values(self) -> Array:
        """[N, V] float64"""
        return exact(np.ascontiguousarray(self.logits), self.dtype).reshape(self.n, self.vocab)

    def row(self, i: int) -> Problem:
        options = {
            k: v[i : i + 1] if k == "temperature" and np.ndim(v) else v
            for k, v in self.options.items()
        }
        keep = slice(i, i + 1)
        mask = None if self.mask is None else self.mask[keep].copy()
        return replace(
            self, logits=self.logits[keep].copy(), targets=self.targets[keep].copy(),
            options=options, mask=mask,
        )  # fmt: skip

    def rows(self) -> Any:
        """CudaRows with the chain in the terms of the kernels."""
        scale = self.options.get("logit_scale", 1.0)
        cap = self.options.get("softcap") or 0.0
        factor = (1.0 if cap else scale) / np.asarray(
            self.options.get("temperature", 1.0), np.float64
        )
        bias = self.options.get("bias")
        return module.CudaRows(
            self.n,
            targets=self.targets,
            mask=self.mask,
            row_scale=factor if factor.ndim else None,
            scale=1.0 if factor.ndim else float(factor),
            bias=None if bias is None else bias.astype(np.float32),
            pre=scale if cap else 1.0,
            softcap=cap,
        )


@dataclass
class Result:
    outputs: dict[str, Array]
    state: Array  # [N, 8]
    flag: int


def tiles(vocab: int, cuts: tuple[int, ...]) -> list[slice]:
    edges = [0, *cuts, vocab]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def stats(
    p: Problem, *, cuts: tuple[int, ...] = (), extras: bool = True, row_ids: Array | None = None
) -> Result:
    """Forward over the tiles between the cuts, and finish."""
    rows = p.rows()
    state = np.full((p.n, 8), np.nan)
    for tile in tiles(p.vocab, cuts):
        part = p.logits[..., tile]
        size = module.CudaRows.workspace_bytes(p.n, part.shape[-1], part.itemsize)
        workspace = np.full(size, 0xFF, np.uint8)
        rows.forward(
            exported(part, p.dtype), state, start=tile.start, first=tile.start == 0, extras=extras,
            workspace=workspace,
        )  # fmt: skip
    names = REALS if extras else REALS[:3]
    outputs = {name: np.full(p.n, np.nan, np.float32) for name in names}
    if extras:
        outputs["argmax"] = np.full(p.n, 85, np.int64)
    flag = np.full(1, NO_ERROR, np.int64)
    rows.finalize(state, p.vocab, error=flag, row_ids=row_ids, **outputs)
    return Result(outputs, state, int(flag[0]))


def gradient(
    p: Problem,
    result: Result,
    upstream: dict[str, Array],
    *,
    cuts: tuple[int, ...] = (),
    in_place: bool = False,
) -> Array:
    """d(logits) as stored, shaped like them; `in_place` works on a copy of the same strides."""
    logits = p.logits
    if in_place:
        logits = like(p.logits)
        logits[...] = p.logits
    out = logits if in_place else np.full(p.logits.shape, 0x7E7E, p.logits.dtype)
    rows = p.rows()
    for tile in tiles(p.vocab, cuts):
        rows.gradient(
            exported(logits[..., tile], p.dtype), result.state, exported(out[..., tile], p.dtype),
            start=tile.start, **upstream,
        )  # fmt: skip
    return out


def like(array: Array) -> Array:
    """Memory of its own with the same strides, ending with the last element."""
    last = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    bytes_ = np.zeros(last + array.itemsize if array.size else 0, np.uint8)
    copy: Array = np.ndarray(array.shape, array.dtype, bytes_, 0, array.strides)
    return copy


def at_offset(array: Array, elements: int) -> Array:
    """A copy that starts so many elements after a multiple of 64 bytes, and ends its memory."""
    item = array.itemsize
    slack = 64 + elements * item
    bytes_ = np.zeros(array.nbytes + slack, np.uint8)
    begin = (elements * item - bytes_.ctypes.data) % 64
    bytes_ = bytes_[begin : begin + array.nbytes]
    copy: Array = np.ndarray(array.shape, array.dtype, bytes_)
    copy[...] = array
    return copy


class Forbidden:
    """[N, V] whose rows are whole pages, some of them unreadable: touching one is a crash."""

    def __init__(self, values: Array, dtype: str, forbidden: Array) -> None:
        array = stored(values, dtype)
        assert array[0].nbytes % mmap.PAGESIZE == 0
        self.memory = mmap.mmap(-1, array.nbytes)
        self.array = np.frombuffer(self.memory, array.dtype).reshape(array.shape)
        self.array[...] = array
        for i in np.flatnonzero(forbidden):
            address = ctypes.c_void_p(self.array[i].ctypes.data)
            if ctypes.CDLL(None).mprotect(address, ctypes.c_size_t(array[0].nbytes), 0):
                raise OSError("mprotect failed")


# MAP_NORESERVE: Python names it from 3.13 on.
NOT_RESERVED = 0x4000


def far_apart(array: Array, stride: int) -> Array:
    """A copy of [N, V] whose rows are `stride` elements apart, most of the memory not there."""
    n, vocab = array.shape
    size = ((n - 1) * stride + vocab) * array.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NOT_RESERVED
    strides = (stride * array.itemsize, array.itemsize)
    copy: Array = np.ndarray(array.shape, array.dtype, mmap.mmap(-1, size, flags), 0, strides)
    copy[...] = array
    return copy


# Elements between rows: the second is beyond 2^31 of them, and the third beyond 2^32, where 32 bits
# would meet the row before.
FAR = 2**31 + 8


def far(p: Problem) -> Problem:
    """The same with such rows."""
    return replace(p, logits=far_apart(p.logits, FAR))


def chain(kind: str, n: int, vocab: int) -> dict[str, Any]:
    """Keyword options of the oracle: every link of the chain alone and all at once."""
    random = np.random.default_rng(4)
    bias = random.standard_normal(vocab).astype(np.float32)
    temperature = random.random(n) + 0.5
    table: dict[str, dict[str, Any]] = {
        "plain": {},
        "temperature": {"temperature": 0.7},
        "row_temperature": {"temperature": temperature},
        "softcap": {"softcap": 15.0},
        "scale": {"logit_scale": 0.3},
        "bias": {"bias": bias},
        "all": {"temperature": temperature, "softcap": 15.0, "logit_scale": 1.3, "bias": bias},
    }
    return table[kind]


CHAINS = ("plain", "temperature", "row_temperature", "softcap", "scale", "bias", "all")


def problem(n: int, vocab: int, dtype: str, kind: str = "plain", seed: int = 0) -> Problem:
    """Gaussian logits with peaked rows, ties and impossible tokens planted."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((n, vocab)).astype(np.float32) * 4
    if n and vocab > 2:
        z[0] = 1.5  # all equal: H = log V
        z[n // 2, vocab // 2] = 60.0  # nearly one-hot
        z[-1, : vocab // 3] = -np.inf  # masked vocabulary
    targets = random.integers(vocab // 3, vocab, n)
    return Problem(dtype, stored(z, dtype), targets, chain(kind, n, vocab))


def wild(seed: int) -> tuple[Problem, tuple[int, ...]]:
    """Anything at all that has a meaning: sizes, spreads, shifts, ties, -inf, masks, and cuts."""
    random = np.random.default_rng(seed)
    dtype = ("float32", "bfloat16", "float16")[seed % 3]
    n = int(random.integers(1, 7))
    vocab = int(random.choice([random.integers(1, 70), random.integers(70, 9000)]))
    spread = random.choice([0.0, 0.1, 4.0, 30.0, 1000.0], n)
    shift = random.choice([0.0, -50.0, 1e4, -3e4], n)
    values = random.standard_normal((n, vocab)) * spread[:, None] + shift[:, None]
    targets = random.integers(0, vocab, n)
    values[random.random((n, vocab)) < random.choice([0.0, 0.5, 0.99])] = -np.inf
    values[np.arange(n), targets] = shift
    mask = random.random(n) < 0.7 if random.random() < 0.5 else None
    cuts = (
        random.integers(1, vocab, 3) if vocab > 3 and random.random() < 0.5 else np.array([], int)
    )
    p = Problem(dtype, stored(values, dtype), targets, mask=mask)
    return p, tuple(sorted({int(cut) for cut in cuts}))


def upstream(n: int, dtype: Any = np.float64, seed: int = 0) -> dict[str, Array]:
    """Gradients of both signs; every fourth row has none."""
    g = np.random.default_rng(seed + 9).standard_normal((3, n)).astype(dtype)
    g[:, ::4] = 0
    return {name: g[i].copy() for i, name in enumerate(("g_logp", "g_entropy", "g_lse"))}
