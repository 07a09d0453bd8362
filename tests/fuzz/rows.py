"""Valid calls of what works on rows of logits: the row kernels, top-k, sampling."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.memory import Exporter, Rng

BLOCK = 2048
STATE = 8
OUTPUTS = (
    "logp", "entropy", "lse", "varentropy", "sum_p2", "log_sum_p2", "mean_logit", "entropy_change",
)  # fmt: skip


def maybe(rng: Rng, value: Any) -> Any:
    return value if rng.random() < 0.5 else None


def width(rng: Rng) -> int:
    """Mostly a few lanes; now and then about a block, or a few."""
    return int(
        rng.choice([rng.integers(1, 200), rng.integers(2040, 2060), 5000], p=[0.8, 0.15, 0.05])
    )


class Problem:
    """Rows of logits [n, width] at column `start` of a vocabulary, and their state."""

    def __init__(self, core: Any, rng: Rng, *, cuda: bool = False, chained: bool = True) -> None:
        self.core, self.rng, self.cuda = core, rng, cuda
        self.n, self.width = int(rng.integers(0, 7)), width(rng)
        self.start = BLOCK * int(rng.choice([0, 0, 1, 3]))
        kind = str(rng.choice(["f4", "f2", "bf"] if cuda else ["f4", "f8", "f2", "bf"]))
        logits = rng.normal(0, 4, (self.n, self.width))
        logits[rng.random(logits.shape) < 0.05] = -np.inf
        if self.n:
            logits[:, 0] = 0
        self.bfloat = kind == "bf"
        if self.bfloat:
            words = logits.astype(np.float32).view(np.uint32) >> 16
            self.logits = words.astype(np.uint16)
        else:
            self.logits = logits.astype(kind)
        n, vocab = self.n, self.start + self.width
        self.own: dict[str, Any] = {
            "n": n,
            "targets": rng.integers(0, vocab, n),
            "mask": maybe(rng, rng.random(n) < 0.8),
            "row_scale": maybe(rng, rng.uniform(0.2, 3, n)),
            "scale": float(rng.uniform(0.2, 3)),
        }
        if chained:
            compute = np.float64 if kind == "f8" else np.float32
            self.own["bias"] = maybe(rng, rng.normal(size=vocab).astype(compute))
            self.own["softcap"] = float(rng.choice([0, 5]))
            self.own["pre"] = 1.0
        if cuda:
            self.own["device"] = 0
        else:
            self.own["threads"] = int(rng.integers(0, 4))

    def given(self, logits: Any) -> Any:
        return Exporter(logits, bfloat=True) if self.bfloat else logits

    def rows(self) -> Any:
        """The CPU's; what they find differs from CUDA's by rounding only."""
        own = {key: value for key, value in self.own.items() if key != "device"}
        return self.core.rows.Rows(**own)

    def state(self) -> Any:
        """Of the tile, as a forward leaves it."""
        state = np.zeros((self.n, STATE))
        self.rows().forward(self.given(self.logits), state, start=self.start, extras=True)
        return state

    def topk(self) -> dict[str, Any]:
        capacity = 2 * int(self.rng.choice([1, 2, 8, 40]))
        return {
            "values": np.zeros((self.n, capacity)),
            "ids": np.zeros((self.n, capacity), np.int32),
            "threshold": np.zeros(self.n),
            "count": np.zeros(self.n, np.int64),
            "margin": float(self.rng.choice([np.inf, 3.0, 30.0])),
        }

    def finalized(self) -> tuple[Any, dict[str, Any]]:
        """The state, and the top-k as a forward and finalize leave it."""
        kept, state = self.topk(), np.zeros((self.n, STATE))
        rows, of = self.rows(), self.core.topk.TopK(**kept)
        tile = self.given(self.logits)
        rows.forward(tile, state, start=self.start, extras=True, topk=of)
        self.core.topk.finalize(rows, state, of)
        return state, kept

    def case(
        self,
        function: str,
        *,
        written: tuple[str, ...],
        kept: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Case:
        all_arguments = {f"own.{key}": value for key, value in self.own.items()}
        if kept is not None:
            all_arguments.update({f"kept.{key}": value for key, value in kept.items()})
            written += ("kept.values", "kept.ids", "kept.threshold", "kept.count")
        all_arguments.update(arguments)
        bfloat = tuple(key for key in ("logits", "gradient") if key in arguments)
        return Case(function, all_arguments, written, bfloat=bfloat * self.bfloat)

    def upstream(self) -> dict[str, Any]:
        return {f"g_{x}": maybe(self.rng, self.rng.normal(size=self.n)) for x in OUTPUTS[:3]}


def rows_init(core: Any, rng: Rng) -> Case:
    return Case("rows.Rows.__init__", Problem(core, rng).own)


def topk_init(core: Any, rng: Rng) -> Case:
    kept = Problem(core, rng).topk()
    return Case("topk.TopK.__init__", kept)


def forward(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    return p.case(
        "rows.Rows.forward", written=("state",), kept=maybe(rng, p.topk()), logits=p.logits,
        state=p.state(), start=p.start, first=bool(rng.integers(2)), extras=bool(rng.integers(2)),
    )  # fmt: skip


def topk_finalize(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    state, kept = p.finalized()
    return p.case("topk.finalize", written=(), kept=kept, state=state)


def merge(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    parts = np.stack([p.state() for _ in range(int(rng.integers(1, 4)))])
    return p.case("rows.Rows.merge", written=("state",), parts=parts, state=np.zeros((p.n, STATE)))


def _outputs(p: Problem, *, wide: bool) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for name in OUTPUTS:
        out = np.zeros(p.n, np.float64 if wide and p.rng.integers(2) else np.float32)
        outputs[name] = out if name in OUTPUTS[:3] else maybe(p.rng, out)
    outputs["argmax"] = maybe(p.rng, np.zeros(p.n, np.int64))
    return outputs


def finalize(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    outputs = _outputs(p, wide=True)
    return p.case(
        "rows.Rows.finalize", written=tuple(outputs), state=p.state(), vocab=p.start + p.width,
        row_ids=maybe(rng, rng.integers(0, 99, p.n)), **outputs,
    )  # fmt: skip


def recapture(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    p = Problem(core, rng, cuda=cuda)
    kept, state = p.topk(), p.state()
    return p.case(
        "topk.cuda_recapture" if cuda else "topk.recapture", written=(), kept=kept,
        logits=p.logits, state=state, start=p.start, first=bool(rng.integers(2)),
    )  # fmt: skip


def measure(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    p = Problem(core, rng, cuda=cuda)
    state, kept = p.finalized()
    return p.case(
        "topk.cuda_measure" if cuda else "topk.measure",
        written=("dropped_mass", "dropped_entropy", "wider"), kept=kept, state=state,
        dropped_mass=np.zeros(p.n), dropped_entropy=np.zeros(p.n), wider=np.zeros(p.n, bool),
        step=int(rng.integers(1, 5)), most=int(rng.integers(1, 9)),
        enough=float(rng.choice([0, 1e-2, 1])), slack=float(rng.choice([0, 1e-3, 0.5])),
    )  # fmt: skip


def sparse_gradient(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    p = Problem(core, rng, cuda=cuda)
    state, kept = p.finalized()
    index = rng.integers(0, p.n, int(rng.integers(0, 9))) if p.n else np.zeros(0, np.int64)
    offsets = np.concatenate(([0], np.cumsum(kept["count"][index])))
    entries = int(offsets[-1])
    return p.case(
        "topk.cuda_sparse_gradient" if cuda else "topk.sparse_gradient",
        written=("columns", "values"), kept=kept, state=state, index=index,
        offsets=offsets, columns=np.zeros(entries, np.int32),
        values=np.zeros(entries, "f4" if cuda else rng.choice(["f4", "f8"])), **p.upstream(),
    )  # fmt: skip


def gradient(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    case = p.case(
        "rows.Rows.gradient", written=("gradient",), logits=p.logits, state=p.state(),
        gradient=np.zeros_like(p.logits), start=p.start, **p.upstream(),
    )  # fmt: skip
    case.may_share = ("gradient", "logits")
    return case


def sample(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    return p.case(
        "sampling.sample", written=("state", "best"), logits=p.logits, state=p.state(),
        best=np.zeros((p.n, 2)), row_ids=rng.integers(0, 99, p.n), seed=int(rng.integers(2**62)),
        step=int(rng.integers(2**43)), start=p.start, first=bool(rng.integers(2)),
    )  # fmt: skip


def draw_truncated(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    p.start = 0
    p.own["bias"] = None
    state, kept = p.finalized()
    source: dict[str, Any] = {
        "logits": p.logits,
        "set_ids": maybe(rng, np.zeros((p.n, p.width), np.int32)),
    }
    if rng.integers(2):
        source = {"kept": kept}
    return p.case(
        "sampling.draw_truncated", written=("state", "token", "set_sizes", "set_ids"), state=state,
        token=np.zeros(p.n, np.int64), top_k=int(rng.choice([0, 1, 3, 100])),
        top_p=float(rng.choice([1, 0.9, 1e-3])), min_p=float(rng.choice([0, 0.1, 1])),
        set_sizes=maybe(rng, np.zeros(p.n, np.int64)),
        row_ids=rng.integers(0, 99, p.n), seed=3, step=int(rng.integers(2**43)), **source,
    )  # fmt: skip


# ---- on a device, or its emulation


def cuda_init(core: Any, rng: Rng) -> Case:
    return Case("rows.CudaRows.__init__", Problem(core, rng, cuda=True).own)


def cuda_workspace(core: Any, rng: Rng) -> Case:
    return Case(
        "rows.CudaRows.workspace_bytes",
        {"n": int(rng.integers(9)), "columns": width(rng), "itemsize": int(rng.choice([2, 4]))},
    )


def cuda_forward(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    size = core.rows.CudaRows.workspace_bytes(p.n, p.width, 2)
    return p.case(
        "rows.CudaRows.forward", written=("state", "workspace"), kept=maybe(rng, p.topk()),
        logits=p.logits, state=p.state(),
        workspace=np.zeros(max(size, 1), np.uint8), start=p.start, first=bool(rng.integers(2)),
        extras=bool(rng.integers(2)),
    )  # fmt: skip


def cuda_topk_finalize(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    state, kept = p.finalized()
    return p.case("topk.cuda_finalize", written=(), kept=kept, state=state)


def cuda_finalize(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    outputs = _outputs(p, wide=False)
    return p.case(
        "rows.CudaRows.finalize", written=("error", *outputs), state=p.state(),
        vocab=p.start + p.width, error=np.full(1, 2**62),
        row_ids=maybe(rng, rng.integers(0, 99, p.n)),
        **outputs,
    )  # fmt: skip


def cuda_gradient(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    case = p.case(
        "rows.CudaRows.gradient", written=("gradient",), logits=p.logits, state=p.state(),
        gradient=np.zeros_like(p.logits), start=p.start, **p.upstream(),
    )  # fmt: skip
    case.may_share = ("gradient", "logits")
    return case


def sampling_workspace(core: Any, rng: Rng) -> Case:
    sizes = {"n": int(rng.integers(9)), "columns": width(rng)}
    return Case("sampling.cuda_workspace_bytes", sizes)


def _draw(core: Any, p: Problem) -> dict[str, Any]:
    """What every draw on a device takes."""
    size = core.sampling.cuda_workspace_bytes(p.n, p.width)
    return {
        "logits": p.logits, "state": p.state(), "workspace": np.zeros(max(size, 1), np.uint8),
        "row_ids": p.rng.integers(0, 99, p.n), "seed": int(p.rng.integers(2**62)),
        "step": int(p.rng.integers(2**43)),
    }  # fmt: skip


def cuda_sample(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    return p.case(
        "sampling.cuda_sample", written=("state", "best", "workspace"), best=np.zeros((p.n, 2)),
        start=p.start, first=bool(rng.integers(2)), **_draw(core, p),
    )  # fmt: skip


def cuda_draw_truncated(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    p.start = 0
    p.own["bias"] = None
    written = ("state", "token", "workspace", "set_sizes", "set_bits", "kept_logp")
    return p.case(
        "sampling.cuda_draw_truncated", written=written, token=np.zeros(p.n, np.int64),
        top_k=int(rng.choice([0, 1, 3, 100])), top_p=float(rng.choice([1, 0.9, 1e-3])),
        min_p=float(rng.choice([0, 0.1, 1])), set_sizes=np.zeros(p.n, np.int64),
        set_bits=maybe(rng, np.zeros((p.n, -(-p.width // 8)), np.uint8)),
        kept_logp=np.zeros(p.n, np.float32), **_draw(core, p),
    )  # fmt: skip


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    "rows.Rows.__init__": rows_init,
    "rows.Rows.forward": forward,
    "rows.Rows.merge": merge,
    "rows.Rows.finalize": finalize,
    "rows.Rows.gradient": gradient,
    "topk.TopK.__init__": topk_init,
    "topk.finalize": topk_finalize,
    "topk.recapture": recapture,
    "topk.measure": measure,
    "topk.sparse_gradient": sparse_gradient,
    "sampling.sample": sample,
    "sampling.draw_truncated": draw_truncated,
    "rows.CudaRows.__init__": cuda_init,
    "rows.CudaRows.workspace_bytes": cuda_workspace,
    "rows.CudaRows.forward": cuda_forward,
    "rows.CudaRows.finalize": cuda_finalize,
    "rows.CudaRows.gradient": cuda_gradient,
    "sampling.cuda_workspace_bytes": sampling_workspace,
    "sampling.cuda_sample": cuda_sample,
    "sampling.cuda_draw_truncated": cuda_draw_truncated,
    "topk.CudaTopK.__init__": lambda core, rng: Case(
        "topk.CudaTopK.__init__", Problem(core, rng).topk()
    ),
    "topk.cuda_finalize": cuda_topk_finalize,
    "topk.cuda_recapture": functools.partial(recapture, cuda=True),
    "topk.cuda_measure": functools.partial(measure, cuda=True),
    "topk.cuda_sparse_gradient": functools.partial(sparse_gradient, cuda=True),
}
