"""Surrogates and controls of a user's own: the library's rows written again give its numbers."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import logitless as ll
from logitless.loss.spec.presets import TABLE
from tests.support.losses.loss_specs import make_batch

torch = pytest.importorskip("torch")
from logitless.ops.losses import spec_serialization  # noqa: E402
from tests.support.losses.loss_calls import ours, tensors, with_grad  # noqa: E402


@dataclass(frozen=True)
class MyClip(ll.CustomSurrogate):
    """PPO by autograd."""

    low: float = 0.2
    high: float = 0.2

    def loss(self, t: ll.SurrogateInputs) -> Any:
        r = t.log_ratio.exp()
        clipped = r.clamp(1 - self.low, 1 + self.high)
        return -torch.min(t.advantages * r, t.advantages * clipped)


@dataclass(frozen=True)
class MyCispo(ll.CustomSurrogate):
    """Slope through logp alone."""

    def loss(self, t: ll.SurrogateInputs) -> Any:
        return -t.log_ratio.exp().clamp(0.8, 1.2).detach() * t.advantages * t.logp


@dataclass(frozen=True)
class MySapo(ll.CustomSurrogate):
    """NumPy, value and slope by hand."""

    def term(self, t: ll.SurrogateInputs) -> tuple[np.ndarray, np.ndarray]:
        tau, r = np.where(t.advantages > 0, 1.0, 1.05), np.exp(t.log_ratio)
        q = 1 / (1 + np.exp(-tau * (r - 1)))
        return -t.advantages * q * 4 / tau, -t.advantages * 4 * q * (1 - q) * r


@dataclass(frozen=True)
class Signs(ll.CustomControl):
    positive: float
    negative: float

    def factor(self, tokens: Any) -> np.ndarray:
        return np.where(tokens.advantages > 0, self.positive, self.negative)


PAIRS = {
    "clip": (MyClip(0.1, 0.3), ll.Clip(0.1, 0.3), "token"),
    "clip-sequence": (MyClip(0.1, 0.1), ll.Clip(0.1, 0.1), "sequence_token"),
    "clip-inference": (MyClip(), ll.Clip(), "inference"),
    "cispo": (MyCispo(), ll.Cispo(), "token"),
    "sapo": (MySapo(), ll.Sapo(), "token"),
}


@pytest.mark.parametrize("mine, theirs, ratio", PAIRS.values(), ids=PAIRS)
def test_a_surrogate_written_again(mine: Any, theirs: Any, ratio: Any) -> None:
    """With a KL, a bonus and a control beside it, in values and gradients."""
    base = ll.PolicyLossSpec(
        ratio=ratio, kl=ll.KL("k2", 0.1), entropy=ll.EntropyBonus(0.2),
        control=ll.TopEntropy(0.5), aggregation="seq-mean-token-mean",
    )  # fmt: skip
    t = tensors(make_batch(30))
    a, b = with_grad(t), with_grad(t)
    first, second = (
        ours(x, replace(base, surrogate=surrogate)) for x, surrogate in ((a, mine), (b, theirs))
    )
    (first.loss + 0).backward()
    second.loss.backward()
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-13, atol=0)
    mask = t["mask"]
    for name in ("logp", "entropy"):
        torch.testing.assert_close(a[name].grad[mask], b[name].grad[mask], rtol=1e-12, atol=1e-16)
    assert first.metrics["actor/pg_loss"] == second.metrics["actor/pg_loss"]


def test_a_control_written_again() -> None:
    t = tensors(make_batch(31))
    mine, theirs = (
        ours(t, replace(ll.presets["ppo"], control=control))
        for control in (Signs(0.3, 2.0), ll.SignWeights(0.3, 2.0))
    )
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-14, atol=0)


def test_a_surrogate_of_ones_own_on_the_linear_path() -> None:
    """Chunks of rows, compiled specs: a local class is found again by what it is."""
    g = torch.Generator().manual_seed(0)
    data = {
        "hidden": torch.randn(12, 8, generator=g).requires_grad_(),
        "weight": torch.randn(40, 8, generator=g).requires_grad_(),
        "targets": torch.randint(0, 40, (12,), generator=g),
        "old_logp": -3 + 0.3 * torch.randn(12, generator=g),
        "advantages": torch.randn(12, generator=g),
        "mask": torch.rand(12, generator=g) > 0.2,
    }
    gradients = []
    for surrogate in (MyClip(), ll.Clip()):
        out = ll.linear_policy_loss(**data, spec=ll.PolicyLossSpec(surrogate=surrogate))
        leaves = (data["hidden"], data["weight"])
        gradients.append((out.loss.detach(), *torch.autograd.grad(out.loss, leaves)))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_row_of_ones_own() -> None:
    spec = ll.PolicyLossSpec(surrogate=MyClip())
    try:
        ll.presets.add("mine", spec, "-min(A r, A clip(r))", "nobody 2026")
        assert ll.presets["mine"] is spec and "mine " in ll.presets.text()
        with pytest.raises(ValueError, match="already has a row 'mine'"):
            ll.presets.add("mine", spec, "", "")
    finally:
        TABLE.pop("mine", None)


@dataclass(frozen=True)
class Wrong(ll.CustomSurrogate):
    what: str

    def term(self, t: ll.SurrogateInputs) -> tuple[np.ndarray, np.ndarray]:
        value = np.full(t.logp.size, np.nan) if self.what == "nan" else np.zeros(3)
        return value, value


@dataclass(frozen=True)
class WrongFactor(ll.CustomControl):
    value: float

    def factor(self, tokens: Any) -> np.ndarray:
        return np.full(tokens.mask.size, self.value)


@pytest.mark.parametrize(
    "spec, words",
    [
        (ll.PolicyLossSpec(surrogate=Wrong("nan")), ["Wrong: loss is NaN at [0, 0]"]),
        (ll.PolicyLossSpec(surrogate=Wrong("shape")), ["Wrong: loss must be [", "got [3]"]),
        (ll.PolicyLossSpec(control=WrongFactor(-1.0)), ["WrongFactor.factor", "-1.0", "[0, 0]"]),
        (ll.PolicyLossSpec(control=WrongFactor(np.nan)), ["WrongFactor.factor", "nan"]),
    ],
    ids=["nan", "shape", "negative", "nan-factor"],
)  # fmt: skip
def test_wrong_formulas_are_named(spec: ll.PolicyLossSpec, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        ours(tensors(make_batch()), spec)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@dataclass(frozen=True)
class Nothing(ll.CustomSurrogate):
    """No formula."""


def test_a_surrogate_without_a_formula() -> None:
    with pytest.raises(NotImplementedError, match="Nothing must define loss or term"):
        ours(tensors(make_batch()), ll.PolicyLossSpec(surrogate=Nothing()))


# ---- what is kept of specs


def module_sizes() -> int:
    """Entries of the dicts and caches that the modules of the package hold."""
    names = [name for name in sys.modules if name.startswith("logitless")]
    values = [value for name in names for value in vars(sys.modules[name]).values()]
    sizes = [len(v) for v in values if isinstance(v, (dict, weakref.WeakValueDictionary))]
    return sum(sizes) + sum(v.cache_info().currsize for v in values if hasattr(v, "cache_info"))


def run_specs(specs: Iterable[ll.PolicyLossSpec]) -> int:
    """Entries that the modules hold after a call of each spec, of tensors and of arrays."""
    logp, a, mask = -torch.rand(6), torch.randn(6), torch.ones(6, dtype=torch.bool)
    ids = torch.arange(6)
    for spec in specs:
        batch = ll.batch_stats(logp, a, mask, spec, token_ids=ids, seed=0, step=0)
        for given in ((logp, a, mask), (logp.numpy(), a.numpy(), mask.numpy())):
            x, advantages, valid = given
            more = {"batch": batch, "token_ids": ids if x is logp else ids.numpy()}
            ll.policy_loss(x, x, advantages, valid, spec, entropy=x, ref_logp=x, **more)
    gc.collect()
    return module_sizes()


def moving(i: int) -> ll.PolicyLossSpec:
    """One loss: its coefficients follow a controller."""
    return replace(
        ll.presets["kl_cov"], entropy=ll.EntropyBonus(1e-6 * i), kl=ll.KL("k3", 1e-3 * i),
        control=ll.KLCov(0.3, coefficient=0.1 * i),
    )  # fmt: skip


def test_a_coefficient_that_moves_is_kept_nowhere() -> None:
    before = run_specs([moving(1)])
    assert run_specs(map(moving, range(2, 1000))) == before


def test_specs_are_not_kept_for_ever() -> None:
    """Losses that differ in more: of each cache only so many of the last."""

    def losses(first: int, last: int) -> Iterable[ll.PolicyLossSpec]:
        for i in range(first, last):
            yield replace(ll.presets["ppo"], surrogate=ll.Clip(1e-4 * (i + 1), 0.2))

    assert run_specs(losses(300, 1000)) <= run_specs(losses(0, 300)) + 20


def test_a_spec_that_was_dropped_is_made_from_its_text() -> None:
    """An equal one: of classes that can be imported and of those of a function, two of one name."""

    def local(power: float) -> ll.PolicyLossSpec:
        @dataclass(frozen=True)
        class Local(ll.CustomSurrogate):
            power: float = 2.0

            def loss(self, t: ll.SurrogateInputs) -> Any:
                return -t.advantages * t.log_ratio.exp() ** self.power

        return ll.PolicyLossSpec(surrogate=Local(power))

    specs = [local(3.0), local(3.0), replace(ll.presets["kl_cov"], entropy=ll.EntropyBonus(0.25))]
    texts = [spec_serialization.encode(spec) for spec in specs]
    assert len(set(texts)) == 3 and specs[0] != specs[1]
    assert [spec_serialization.decode(text) for text in texts] == specs
    assert spec_serialization.decode(texts[0]) is specs[0]
    # what is still there when the specs themselves are gone: the user's classes alone
    kinds = [type(spec.surrogate) for spec in specs]
    gone = weakref.ref(specs[0])
    del specs
    spec_serialization.encode.cache_clear()
    gc.collect()
    assert gone() is None
    again = [spec_serialization.decode(text) for text in texts]
    assert [type(spec.surrogate) for spec in again] == kinds
    assert [getattr(spec.surrogate, "power", None) for spec in again] == [3.0, 3.0, None]
    assert again[2] == replace(ll.presets["kl_cov"], entropy=ll.EntropyBonus(0.25))
