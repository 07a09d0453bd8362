"""Valid calls of rows under two softmaxes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.memory import Rng
from tests.fuzz.rows import STATE, Problem, maybe


class Pair(Problem):
    """A tile of each, of float or of double, and the teacher's rows."""

    def __init__(self, core: Any, rng: Rng, *, cuda: bool = False) -> None:
        super().__init__(core, rng, cuda=cuda)
        wide = self.logits.dtype == np.float64
        logits = rng.normal(0, 4, (self.n, self.width))
        logits[rng.random(logits.shape) < 0.05] = -np.inf
        if self.n:
            logits[:, 0] = 0
        self.others = logits.astype("f8" if wide else str(rng.choice(["f4", "f2"])))
        vocab = self.start + self.width
        bias = rng.normal(size=vocab).astype("f8" if wide else "f4")
        self.teacher: dict[str, Any] = {
            "n": self.n, "scale": float(rng.uniform(0.2, 3)), "bias": maybe(rng, bias),
            "row_scale": maybe(rng, rng.uniform(0.2, 3, self.n)),
            **({"device": 0} if cuda else {"threads": 1}),
            "softcap": float(rng.choice([0, 5])), "pre": 1.0,
        }  # fmt: skip

    @property
    def both(self) -> tuple[Any, Any]:
        """On the CPU: what CUDA's kernels leave differs by rounding only."""
        own, teacher = (
            self.core.rows.Rows(**{key: x for key, x in side.items() if key != "device"})
            for side in (self.own, self.teacher)
        )
        return own, teacher

    @property
    def tiles(self) -> tuple[Any, Any]:
        return self.given(self.logits), self.others

    def pair_state(self) -> Any:
        state = np.zeros((self.n, STATE))
        self.core.divergence.forward(*self.both, *self.tiles, state, start=self.start)
        return state

    def pair_case(
        self, name: str, written: tuple[str, ...], tiles: bool = True, **more: Any
    ) -> Case:
        given: dict[str, Any] = {}
        if tiles:
            given = {"logits": self.logits, "teacher_logits": self.others, "start": self.start}
        own = {f"own.{key}": value for key, value in self.own.items()}
        teacher = {f"teacher.{key}": value for key, value in self.teacher.items()}
        if name in ("forward", "mix", "gradient"):
            given |= _noise(self.rng, self.n)
        bfloat = tuple(x for x in ("logits", "gradient") if self.bfloat and x in {**given, **more})
        name = f"divergence.{'CudaPair.' * self.cuda}{name}"
        return Case(name, {**own, **teacher, **given, **more}, written, bfloat=bfloat)

    def lent(self) -> dict[str, Any]:
        size = self.core.divergence.CudaPair.workspace_bytes(self.n, self.width)
        return {"workspace": np.zeros(max(size, 1), np.uint8)}


def _noise(rng: Rng, n: int) -> dict[str, Any]:
    """That of a call, or none."""
    given = {
        "row_ids": rng.integers(0, 1000, n), "sizes": rng.uniform(0, 2, n) * (rng.random(n) < 0.7),
        "seed": int(rng.integers(2**62)), "step": int(rng.integers(2**34)),
        "start": int(rng.integers(0, 5000)),
    }  # fmt: skip
    return {f"noise.{key}": value for key, value in given.items()} if rng.random() < 0.5 else {}


def noise(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    n = int(rng.integers(0, 7))
    given = {"row_ids": rng.integers(0, 9, n), "sizes": rng.uniform(0, 2, n)}
    more = {"seed": int(rng.integers(2**62)), "step": int(rng.integers(2**34)), "start": 0}
    more |= {"device": 0} if cuda else {}
    return Case(f"divergence.{'Cuda' * cuda}Noise.__init__", {**given, **more})


def forward(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    pair = Pair(core, rng, cuda=cuda)
    more = {"state": pair.pair_state(), "first": bool(rng.random() < 0.5)}
    return pair.pair_case(
        "forward", ("state", *LENT[cuda]), **more, **(pair.lent() if cuda else {})
    )


def merge(core: Any, rng: Rng) -> Case:
    pair = Pair(core, rng)
    parts = np.stack([pair.pair_state() for _ in range(int(rng.integers(1, 4)))])
    state = np.zeros((pair.n, STATE))
    return pair.pair_case("merge", ("state",), tiles=False, parts=parts, state=state)


def mix(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    pair = Pair(core, rng, cuda=cuda)
    more = {"sums": np.zeros((pair.n, 2)), "beta": float(rng.uniform(0.1, 0.9))}
    more |= pair.lent() if cuda else {}
    return pair.pair_case("mix", ("sums", *LENT[cuda]), state=pair.pair_state(), **more)


def finalize(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    pair = Pair(core, rng, cuda=cuda)
    names = ("entropy", "teacher_entropy", "reverse_kl", "forward_kl")
    kind = "f4" if cuda else str(rng.choice(["f4", "f8"]))
    outputs = {name: np.zeros(pair.n, kind) for name in names}
    outputs |= {"error": np.full(1, 2**62)} if cuda else {}
    row_ids = maybe(rng, rng.integers(0, 1000, pair.n))
    return pair.pair_case(
        "finalize", tuple(outputs), tiles=False, state=pair.pair_state(), row_ids=row_ids, **outputs
    )


def gradient(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    pair = Pair(core, rng, cuda=cuda)
    kind = str(rng.choice(["reverse_kl", "forward_kl", "jsd"]))
    more = {
        "kind": kind,
        "beta": float(rng.uniform(0.1, 0.9)),
        "sums": np.abs(rng.normal(size=(pair.n, 2))) if kind == "jsd" else None,
        **{name: maybe(rng, rng.normal(size=pair.n)) for name in ("g_divergence", "g_entropy")},
        **(pair.lent() if cuda else {}),
    }
    case = pair.pair_case(
        "gradient", ("gradient", *LENT[cuda]), state=pair.pair_state(),
        gradient=np.zeros_like(pair.logits), **more,
    )  # fmt: skip
    case.may_share = ("gradient", "logits")
    return case


def _entries(core: Any, rng: Rng, name: str, written: str, cuda: bool, **more: Any) -> Case:
    """Of rows over sets, now and then of more entries than a block."""
    n, dtype = int(rng.integers(0, 7)), "f4" if cuda else str(rng.choice(["f4", "f8"]))
    sizes = rng.integers(0, 90, n) + (4500 if rng.random() < 0.2 else 0)
    count = int(sizes.sum())

    def side() -> dict[str, Any]:
        return {
            "n": n, "scale": float(rng.uniform(0.2, 3)), "pre": 1.0,
            "row_scale": maybe(rng, rng.uniform(0.2, 3, n)), "softcap": float(rng.choice([0, 5])),
            **({"device": 0} if cuda else {"threads": int(rng.integers(0, 4))}),
        }  # fmt: skip

    own, teacher = side(), side()
    given = {
        "offsets": np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        "logits": rng.normal(0, 4, count).astype(dtype),
        "teacher_logits": rng.normal(0, 4, count).astype(dtype),
    }
    state = np.zeros((n, STATE))
    # on the CPU: what CUDA's kernels leave differs by rounding only
    rows = (
        core.rows.Rows(**{key: value for key, value in x.items() if key != "device"})
        for x in (own, teacher)
    )
    core.divergence.entries_forward(*rows, *given.values(), state)
    both = {f"{who}.{key}": x for who, of in (("own", own), ("teacher", teacher))
            for key, x in of.items()}  # fmt: skip
    if written == "gradient":
        more["gradient"] = np.zeros(count, dtype)
    if name != "entries_forward":
        more["sums"] = np.abs(rng.normal(size=(n, 2)))
        more["beta"] = float(rng.uniform(0.1, 0.9))
    more |= _noise(rng, n)
    noisy = any(key.startswith("noise.") for key in more)
    if noisy or rng.random() < 0.5:
        more["columns"] = np.sort(rng.integers(0, 5000, count)).astype(np.int32)
    name = f"divergence.{'cuda_' * cuda}{name}"
    return Case(name, {**both, **given, "state": state, **more}, (written,))


def entries_forward(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    return _entries(core, rng, "entries_forward", "state", cuda)


def entries_mix(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    return _entries(core, rng, "entries_mix", "sums", cuda)


def entries_gradient(core: Any, rng: Rng, *, cuda: bool = False) -> Case:
    kind = str(rng.choice(["reverse_kl", "forward_kl", "jsd"]))
    case = _entries(core, rng, "entries_gradient", "gradient", cuda, kind=kind)
    n = len(case.arguments["offsets"]) - 1
    for name in ("g_divergence", "g_entropy"):
        case.arguments[name] = maybe(rng, rng.normal(size=n))
    return case


# ---- on a device, or its emulation

LENT = {False: (), True: ("workspace",)}


def cuda_init(core: Any, rng: Rng) -> Case:
    return Pair(core, rng, cuda=True).pair_case("__init__", (), tiles=False)


def cuda_workspace(core: Any, rng: Rng) -> Case:
    sizes = {"n": int(rng.integers(9)), "columns": int(rng.integers(5000))}
    return Case("divergence.CudaPair.workspace_bytes", sizes)


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    "divergence.forward": forward,
    "divergence.merge": merge,
    "divergence.mix": mix,
    "divergence.finalize": finalize,
    "divergence.gradient": gradient,
    "divergence.CudaPair.__init__": cuda_init,
    "divergence.CudaPair.workspace_bytes": cuda_workspace,
    **{
        f"divergence.CudaPair.{maker.__name__}": functools.partial(maker, cuda=True)
        for maker in (forward, mix, finalize, gradient)
    },
    "divergence.Noise.__init__": noise,
    "divergence.CudaNoise.__init__": functools.partial(noise, cuda=True),
    **{
        f"divergence.{'cuda_' * cuda}{maker.__name__}": functools.partial(maker, cuda=cuda)
        for cuda in (False, True)
        for maker in (entries_forward, entries_mix, entries_gradient)
    },
}
