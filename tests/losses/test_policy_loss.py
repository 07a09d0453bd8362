"""policy_loss in torch: against autograd of the plain formula; dtypes, splits, verl's scope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from logitless.loss.spec import (
    Clip,
    ClipCov,
    ClipV,
    EntropyBonus,
    KLCov,
    PolicyLossSpec,
)
from logitless.loss.spec.presets import presets
from logitless.ops.batch_stats import batch_stats
from tests.support.losses.loss_calls import ours, tensors, with_grad
from tests.support.losses.loss_specs import SELECTING, SPECS, chosen, make_batch

torch = pytest.importorskip("torch")
from tests.support.losses.plain_losses import plain_loss  # noqa: E402


def batch_of(t: dict[str, Any], spec: PolicyLossSpec, **packing: Any) -> dict[str, Any]:
    """Statistics of the whole batch, for the control that cannot do without."""
    if not isinstance(spec.control, ClipV):
        return {}
    stats = batch_stats(
        t["logp"].detach(), t["advantages"], t["mask"], spec, token_ids=t["token_ids"],
        entropy_change=t["entropy_change"], seed=0, step=0, **packing,
    )  # fmt: skip
    return {"batch": stats}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_against_autograd_of_the_plain_formula(spec: PolicyLossSpec, packed: bool) -> None:
    """The plain formula is of padded tensors; packed tokens are compared with theirs there."""
    batch = make_batch(20)
    if packed and spec.aggregation == "seq-mean-token-sum-norm" and spec.max_length is None:
        spec = replace(spec, max_length=batch.mask.shape[1])
    flat, cu_seqlens = batch.packed() if packed else (batch, None)
    packing = {"cu_seqlens": torch.from_numpy(cu_seqlens)} if packed else {}
    there = torch.from_numpy(np.isin(batch.token_ids, flat.token_ids))
    selected = torch.from_numpy(np.isin(batch.token_ids, chosen(batch, spec)))
    plain, t = with_grad(tensors(batch)), tensors(flat)
    mine = with_grad(t)
    expected = plain_loss(plain, spec, selected)
    out = ours(mine, spec, **batch_of(t, spec, **packing), **packing)
    assert out.loss.dtype == torch.float64 and out.loss.shape == ()
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-14)
    (3.0 * expected).backward()
    (3.0 * out.loss).backward()
    for name in ("logp", "entropy"):
        wanted, got = plain[name].grad, mine[name].grad
        if got is None or wanted is None:
            assert name == "entropy" or type(spec.surrogate).__name__ == "NoPolicy"
            assert got is None or (got == 0).all()
            continue
        mask, wanted = t["mask"], wanted[there].view_as(got)
        torch.testing.assert_close(got[mask], wanted[mask], rtol=1e-12, atol=1e-15)
        assert (got[~mask] == 0).all()


@pytest.mark.parametrize("name", ["ppo", "k3", "entropy", "dual", "many_top_entropy"])
def test_gradcheck(name: str) -> None:
    batch = make_batch(21)
    keep = batch.mask
    flat = {k: torch.from_numpy(x[keep]) for k, x in vars(batch).items()}
    spec = replace(SPECS[name], aggregation="token-mean")

    def f(logp: Any, entropy: Any) -> Any:
        return ours({**flat, "logp": logp, "entropy": entropy}, spec).loss

    inputs = tuple(flat[k].clone().requires_grad_() for k in ("logp", "entropy"))
    assert torch.autograd.gradcheck(f, inputs, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_narrow_dtypes(dtype: str) -> None:
    """Computed wide from the inputs as given: only the gradient rounds to the input's dtype."""
    kind = getattr(torch, dtype)
    t = tensors(make_batch(22, spread=0.2))
    t = {k: x.to(kind) if x.is_floating_point() else x for k, x in t.items()}
    narrow = with_grad(t)
    out = ours(narrow, SPECS["entropy"])
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    wide = {k: x.double() if x.is_floating_point() else x for k, x in t.items()}
    expected = with_grad(wide)
    plain_loss(expected, SPECS["entropy"], None).backward()
    assert narrow["logp"].grad.dtype == kind and narrow["entropy"].grad.dtype == kind
    mask, eps = t["mask"], torch.finfo(kind).eps
    torch.testing.assert_close(
        narrow["logp"].grad[mask].double(), expected["logp"].grad[mask], rtol=eps, atol=eps / 100
    )


@pytest.mark.parametrize("spec", SELECTING.values(), ids=SELECTING)
def test_micro_batches_accumulate_the_gradient_of_the_batch(spec: PolicyLossSpec) -> None:
    batch = make_batch(23, dtype=np.float32)
    t = tensors(batch)
    stats = batch_stats(
        t["logp"], t["advantages"], t["mask"], spec, old_logp=t["old_logp"],
        entropy=t["entropy"], entropy_change=t["entropy_change"],
        rollout_logp=t["rollout_logp"], token_ids=t["token_ids"], seed=0, step=0,
    )  # fmt: skip
    assert stats.selected.dtype == torch.int64
    whole, pieces = with_grad(t), with_grad(t)
    ours(whole, spec, **batch_of(t, spec)).loss.backward()
    for rows in (slice(0, 2), slice(2, 3), slice(3, 6)):
        piece = {k: x[rows] for k, x in pieces.items()}
        ours(piece, spec, batch=stats).loss.backward()
    torch.testing.assert_close(pieces["logp"].grad, whole["logp"].grad, rtol=1e-6, atol=1e-9)


def test_ranks_whose_gradients_are_averaged() -> None:
    """grad_scale = world_size undoes DDP's mean over ranks."""
    t = tensors(make_batch(24))
    stats = batch_stats(
        t["logp"], t["advantages"], t["mask"], presets["ppo"], token_ids=t["token_ids"],
        seed=0, step=0,
    )  # fmt: skip
    whole = with_grad(t)
    ours(whole, presets["ppo"]).loss.backward()
    ranks = with_grad(t)
    for rows in (slice(0, 3), slice(3, 6)):
        piece = {k: x[rows] for k, x in ranks.items()}
        (ours(piece, presets["ppo"], batch=stats, grad_scale=2.0).loss / 2).backward()
    torch.testing.assert_close(ranks["logp"].grad, whole["logp"].grad)


# ---- verl's own selection, per call


def verl_clip_cov(t: dict[str, Any], control: ClipCov, surrogate: Clip) -> Any:
    """What a per-call Clip-Cov zeroes: masked means of the call, torch.randperm of candidates."""
    mask = t["mask"]
    lp, a, old = (
        torch.where(mask, t[k], torch.zeros(())) for k in ("logp", "advantages", "old_logp")
    )
    n = mask.sum()
    cov = (a - a[mask].sum() / n) * (lp - lp[mask].sum() / n)
    ratio = (lp - old).exp()
    clipped = -a * ratio.clamp(1 - surrogate.low, 1 + surrogate.high) > -a * ratio
    inside = (cov > control.low) & (cov < control.high) & mask & ~clipped
    places = inside.nonzero()
    k = max(int(control.fraction * int(n)), 1)
    places = places[torch.randperm(len(places))[:k]]
    selected = torch.zeros_like(mask)
    selected[places[:, 0], places[:, 1]] = True
    return selected


def test_micro_scope_draws_as_verl_does() -> None:
    t = tensors(make_batch(25))
    control, surrogate = ClipCov(0.2, -1.0, 1.0, scope="micro"), Clip(0.2, 0.2)
    spec = PolicyLossSpec(surrogate=surrogate, control=control)
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        selected = verl_clip_cov(t, control, surrogate)
        torch.manual_seed(seed)
        plain, mine = with_grad(t), with_grad(t)
        plain_loss(plain, spec, selected).backward()
        out = ours(mine, spec)
        out.loss.backward()
        mask = t["mask"]
        torch.testing.assert_close(mine["logp"].grad[mask], plain["logp"].grad[mask])
        assert float(out.metrics["actor/cov_selected"]) == pytest.approx(
            float(selected.sum() / mask.sum())
        )
        drawn.append(selected)
    assert (drawn[0] != drawn[1]).any()


def test_micro_scope_depends_on_the_cut_and_batch_scope_does_not() -> None:
    """What verl#7829 is about: at least one token per call, so more calls act on more tokens."""
    t = tensors(make_batch(26))
    shares = {}
    for scope in ("micro", "batch"):
        spec = replace(presets["kl_cov"], control=KLCov(0.01, 1.0, scope=scope))
        stats = batch_stats(
            t["logp"], t["advantages"], t["mask"], spec, token_ids=t["token_ids"], seed=0, step=0
        )
        for rows in (6, 1):
            pieces = ({k: x[i : i + rows] for k, x in t.items()} for i in range(0, 6, rows))
            outs = [ours(p, spec, batch=stats) for p in pieces]
            share = sum(float(o.metrics["actor/cov_selected"]) for o in outs)
            shares[scope, rows] = round(share * stats.count)
    assert shares["batch", 6] == shares["batch", 1] == shares["micro", 6] == 1
    assert shares["micro", 1] == 5


# ---- autograd's manners


def test_metrics_are_detached_float32_scalars() -> None:
    out = ours(with_grad(tensors(make_batch())), SPECS["k3"])
    assert {"actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/cov_mean"} <= set(out.metrics)
    for value in out.metrics.values():
        assert value.dtype == torch.float32 and value.shape == () and not value.requires_grad


def test_nothing_requires_grad_where_nothing_should() -> None:
    t = tensors(make_batch())
    assert not ours(t, presets["ppo"]).loss.requires_grad
    with torch.no_grad():
        assert not ours(with_grad(t), presets["ppo"]).loss.requires_grad
    only_entropy = {**t, "entropy": t["entropy"].clone().requires_grad_()}
    bonus = replace(presets["ppo"], entropy=EntropyBonus(0.5))
    ours(only_entropy, bonus).loss.backward()
    mask = t["mask"]
    expected = torch.where(mask, -0.5 / mask.sum(), 0.0).double()
    torch.testing.assert_close(only_entropy["entropy"].grad, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["old_logp", "advantages", "ref_logp"])
def test_data_may_not_require_grad(name: str) -> None:
    t = tensors(make_batch())
    t[name] = t[name].clone().requires_grad_()
    with pytest.raises(ValueError, match=f"{name} is data"):
        ours(t, SPECS["k3"])


# torch 2.15 looks at .grad of what it makes itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", ["ppo", "entropy"])
def test_the_op_is_a_good_citizen(name: str) -> None:
    """torch's own checks: schema, fake kernel, autograd registration, compilation."""
    from logitless.ops.losses.op import loss_inputs, policy_loss_op

    op: Any = policy_loss_op
    t = tensors(make_batch(dtype=np.float32))
    given = (t["old_logp"], t["advantages"], t["mask"], None, None, None, None)
    inputs = loss_inputs(*given, SPECS[name], None, None, 1.0)
    logp, entropy = (t[k].nan_to_num().requires_grad_() for k in ("logp", "entropy"))
    flat = op.flat((logp, entropy if name == "entropy" else None, inputs))
    torch.library.opcheck(op.overload, tuple(flat))


def test_double_backward_raises() -> None:
    t = with_grad(tensors(make_batch()))
    loss = ours(t, presets["ppo"]).loss
    with pytest.raises(RuntimeError, match="policy_loss: double backward"):
        torch.autograd.grad(loss, t["logp"], create_graph=True)


@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("name", ["ppo", "entropy"])
def test_a_kept_graph_gives_the_same_gradients_again(name: str, upstream: float) -> None:
    """Backward gives the coefficients themselves away only where nobody needs them again."""
    t = with_grad(tensors(make_batch()))
    wanted = [t[k] for k in ("logp", "entropy") if name == "entropy" or k == "logp"]
    loss = upstream * ours(t, SPECS[name]).loss
    seen = []
    for keep in (True, True, False):
        grads = torch.autograd.grad(loss, wanted, retain_graph=keep)
        seen.append([g.clone() for g in grads])
        for g in grads:
            g.zero_()
    for again in seen[1:]:
        assert all(map(torch.equal, seen[0], again))
    assert all(bool(g.nan_to_num().abs().sum() > 0) for g in seen[0])
