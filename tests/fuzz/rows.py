"""Valid calls of the row kernels: Rows, CudaRows, Candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.memory import Exporter, Rng

BLOCK = 2048
STATE = 8
OUTPUTS = ("logp", "entropy", "lse", "varentropy", "sum_p2", "entropy_change")


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
        return self.core.Rows(**self.own)

    def state(self) -> Any:
        """Of the tile, as a forward leaves it; CUDA's differs by rounding only."""
        state = np.zeros((self.n, STATE))
        own = {key: value for key, value in self.own.items() if key != "device"}
        rows = self.core.Rows(**own)
        rows.forward(self.given(self.logits), state, start=self.start, extras=True)
        return state

    def candidates(self) -> dict[str, Any]:
        room = 2 * int(self.rng.choice([1, 2, 8, 40]))
        return {
            "y": np.zeros((self.n, room)),
            "ids": np.zeros((self.n, room), np.int32),
            "floor": np.zeros(self.n),
            "count": np.zeros(self.n, np.int64),
            "tau": float(self.rng.choice([np.inf, 3.0, 30.0])),
        }

    def settled(self) -> tuple[Any, dict[str, Any]]:
        """The state, and the candidates as a forward and settle leave them."""
        kept, state = self.candidates(), np.zeros((self.n, STATE))
        rows, of = self.rows(), self.core.Candidates(**kept)
        tile = self.given(self.logits)
        rows.forward(tile, state, start=self.start, extras=True, candidates=of)
        rows.settle(state, of)
        return state, kept

    def case(
        self,
        method: str,
        *,
        written: tuple[str, ...],
        kept: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Case:
        owner = "CudaRows" if self.cuda else "Rows"
        all_arguments = {f"own.{key}": value for key, value in self.own.items()}
        if kept is not None:
            all_arguments.update({f"kept.{key}": value for key, value in kept.items()})
            written += ("kept.y", "kept.ids", "kept.floor", "kept.count")
        all_arguments.update(arguments)
        bfloat = tuple(key for key in ("logits", "gradient") if key in arguments)
        return Case(f"{owner}.{method}", all_arguments, written, bfloat=bfloat * self.bfloat)

    def upstream(self) -> dict[str, Any]:
        return {f"g_{x}": maybe(self.rng, self.rng.normal(size=self.n)) for x in OUTPUTS[:3]}


def rows_init(core: Any, rng: Rng) -> Case:
    return Case("Rows.__init__", Problem(core, rng).own)


def candidates_init(core: Any, rng: Rng) -> Case:
    kept = Problem(core, rng).candidates()
    return Case("Candidates.__init__", kept)


def forward(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    return p.case(
        "forward", written=("state",), kept=maybe(rng, p.candidates()), logits=p.logits,
        state=p.state(), start=p.start, first=bool(rng.integers(2)), extras=bool(rng.integers(2)),
    )  # fmt: skip


def settle(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    state, kept = p.settled()
    return p.case("settle", written=(), kept=kept, state=state)


def merge(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    pieces = np.stack([p.state() for _ in range(int(rng.integers(1, 4)))])
    return p.case("merge", written=("state",), pieces=pieces, state=np.zeros((p.n, STATE)))


def _outputs(p: Problem, *, wide: bool) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for name in OUTPUTS:
        out = np.zeros(p.n, np.float64 if wide and p.rng.integers(2) else np.float32)
        outputs[name] = out if name in OUTPUTS[:3] else maybe(p.rng, out)
    outputs["argmax"] = maybe(p.rng, np.zeros(p.n, np.int64))
    return outputs


def finish(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    outputs = _outputs(p, wide=True)
    return p.case(
        "finish", written=tuple(outputs), state=p.state(), vocab=p.start + p.width,
        row_ids=maybe(rng, rng.integers(0, 99, p.n)), **outputs,
    )  # fmt: skip


def measure_support(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    state, kept = p.settled()
    return p.case(
        "measure_support", written=("mass", "entropy"), kept=kept, state=state,
        mass=np.zeros(p.n), entropy=np.zeros(p.n), spare=float(rng.choice([0, 1e-3, 0.5])),
    )  # fmt: skip


def support_gradient(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    state, kept = p.settled()
    index = rng.integers(0, p.n, int(rng.integers(0, 9))) if p.n else np.zeros(0, np.int64)
    offsets = np.concatenate(([0], np.cumsum(kept["count"][index])))
    entries = int(offsets[-1])
    return p.case(
        "support_gradient", written=("columns", "values"), kept=kept, state=state, index=index,
        offsets=offsets, columns=np.zeros(entries, np.int32),
        values=np.zeros(entries, rng.choice(["f4", "f8"])), **p.upstream(),
    )  # fmt: skip


def backward(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    case = p.case(
        "backward", written=("gradient",), logits=p.logits, state=p.state(),
        gradient=np.zeros_like(p.logits), start=p.start, **p.upstream(),
    )  # fmt: skip
    case.may_share = ("gradient", "logits")
    return case


def sample(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    return p.case(
        "sample", written=("state", "best"), logits=p.logits, state=p.state(),
        best=np.zeros((p.n, 2)), row_ids=rng.integers(0, 99, p.n), seed=int(rng.integers(2**62)),
        step=int(rng.integers(2**43)), start=p.start, first=bool(rng.integers(2)),
    )  # fmt: skip


def draw_truncated(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng)
    p.start = 0
    p.own["bias"] = None
    state, kept = p.settled()
    source: dict[str, Any] = {"logits": p.logits}
    if rng.integers(2):
        source = {"kept": kept}
    return p.case(
        "draw_truncated", written=("state", "token"), state=state, token=np.zeros(p.n, np.int64),
        top_k=int(rng.choice([0, 1, 3, 100])), top_p=float(rng.choice([1, 0.9, 1e-3])),
        row_ids=rng.integers(0, 99, p.n), seed=3, step=int(rng.integers(2**43)), **source,
    )  # fmt: skip


# ---- on a device, or its emulation


def cuda_init(core: Any, rng: Rng) -> Case:
    return Case("CudaRows.__init__", Problem(core, rng, cuda=True).own)


def cuda_workspace(core: Any, rng: Rng) -> Case:
    return Case(
        "CudaRows.workspace_bytes",
        {"n": int(rng.integers(9)), "columns": width(rng), "itemsize": int(rng.choice([2, 4]))},
    )


def cuda_forward(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    size = core.CudaRows.workspace_bytes(p.n, p.width, 2)
    return p.case(
        "forward", written=("state", "workspace"), logits=p.logits, state=p.state(),
        workspace=np.zeros(max(size, 1), np.uint8), start=p.start, first=bool(rng.integers(2)),
        extras=bool(rng.integers(2)),
    )  # fmt: skip


def cuda_finish(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    outputs = _outputs(p, wide=False)
    return p.case(
        "finish", written=("error", *outputs), state=p.state(), vocab=p.start + p.width,
        error=np.full(1, 2**62), row_ids=maybe(rng, rng.integers(0, 99, p.n)), **outputs,
    )  # fmt: skip


def cuda_backward(core: Any, rng: Rng) -> Case:
    p = Problem(core, rng, cuda=True)
    case = p.case(
        "backward", written=("gradient",), logits=p.logits, state=p.state(),
        gradient=np.zeros_like(p.logits), start=p.start, **p.upstream(),
    )  # fmt: skip
    case.may_share = ("gradient", "logits")
    return case


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    "Rows.__init__": rows_init,
    "Candidates.__init__": candidates_init,
    "Rows.forward": forward,
    "Rows.settle": settle,
    "Rows.merge": merge,
    "Rows.finish": finish,
    "Rows.measure_support": measure_support,
    "Rows.support_gradient": support_gradient,
    "Rows.backward": backward,
    "Rows.sample": sample,
    "Rows.draw_truncated": draw_truncated,
    "CudaRows.__init__": cuda_init,
    "CudaRows.workspace_bytes": cuda_workspace,
    "CudaRows.forward": cuda_forward,
    "CudaRows.finish": cuda_finish,
    "CudaRows.backward": cuda_backward,
}
