"""The token kernels of a device against the CPU's: the same tokens are selected, bit for bit, and
so is each coefficient, where no floats are added over a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.backends import registry
from logitless.backends.row_kernels import errors
from logitless.backends.token_kernels.cpu import CPU_TOKENS
from logitless.loss.evaluate.coefficients import call_inputs
from logitless.loss.evaluate.inputs import loss_data
from logitless.loss.evaluate.make_tokens import make_tokens
from logitless.loss.spec import KL, ClipCov, ClipV, Entropic, PolicyLossSpec
from tests.support.device.devices import Device
from tests.support.device.token_batches import here, sized, skip_slow, stats_of, there
from tests.support.device.waits import NothingIsRead
from tests.support.losses.loss_calls import ours as policy_loss_of
from tests.support.losses.loss_calls import tensors, with_grad
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, make_batch

# of float32 and of float64 alike, where sums have another order of additions
ULPS = 4


def ulps_of(spec: PolicyLossSpec) -> int:
    """A token's own numbers have the CPU's bits. A ratio of a sequence, and weights of one or over
    their mean, have sums of floats in them."""
    sums = spec.sequence_ratio
    if spec.correction is not None:
        sums |= spec.correction.per_sequence or spec.correction.normalize
    return ULPS if sums else 0


def assert_near(ours: Any, truth: Any, ulps: int, least: float = 1e-300) -> None:
    """Within so many units in the last place of the truth, or of `least`, and 0 where that is."""
    ours, truth = here(ours), here(truth)
    assert ours.dtype == truth.dtype
    np.testing.assert_array_equal(ours == 0, truth == 0)
    unit = np.spacing(np.maximum(abs(truth), least))
    far = abs(ours.astype(np.float64) - truth) / unit
    assert far.max(initial=0) <= ulps, (far.argmax(), ours[far.argmax()], truth[far.argmax()])


def inputs_of(kernels: Any, data: Any, options: Any, spec: PolicyLossSpec, stats: Any) -> Any:
    logp, old_logp, advantages, mask = data
    given = loss_data(
        old_logp, advantages, mask, options["ref_logp"], options["rollout_logp"],
        options.get("cu_seqlens"), options["token_ids"], spec, stats, None, 1.0,
        old_entropy=options["old_entropy"],
    )  # fmt: skip
    return call_inputs(logp, options["entropy"], given, kernels)


@pytest.mark.parametrize("packed", [False, True], ids=["padded64", "packed32"])
@pytest.mark.parametrize("name", SPECS)
def test_the_same_as_on_the_cpu(device: Device, kernels: Any, name: str, packed: bool) -> None:
    """With a batch and where the call is the batch, and nothing is read by the host."""
    skip_slow(device, name, packed)
    padded = make_batch(50, dtype=np.float32 if packed else np.float64)
    spec = sized(SPECS[name], padded)
    batch, cu_seqlens = padded.packed() if packed else (padded, None)
    packing = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
    options: dict[str, Any] = {**batch.optional, **packing}
    arrays, more = [there(x, device) for x in batch.inputs], there(options, device)
    known: list[Any] = [] if isinstance(spec.control, ClipV) else [None]
    known.append(stats_of(batch, spec, **packing))
    for stats in known:
        moved = stats and stats._replace(
            selected=there(stats.selected, device), sequences=there(stats.sequences, device)
        )
        torch.manual_seed(3)
        chosen = inputs_of(CPU_TOKENS, batch.inputs, options, spec, stats).selected
        _, expected = coefficients(*batch.inputs, spec, batch=stats, **options)
        torch.manual_seed(3)
        # verl's Clip-Cov draws a permutation on the host
        draws = spec.selects_in_call and isinstance(spec.control, ClipCov)
        with NothingIsRead() if not draws else torch.no_grad():
            selected = inputs_of(kernels, arrays, more, spec, moved).selected
            tokens, out = coefficients(*arrays, spec, batch=moved, kernels=kernels, **more)
        assert (selected is None) == (chosen is None)
        if chosen is not None:
            valid = batch.mask.ravel()
            np.testing.assert_array_equal(here(selected)[valid], chosen[valid])
        assert tokens.logp.device == arrays[0].device
        assert out.loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-15)
        assert out.metrics == pytest.approx(expected.metrics, rel=1e-11, abs=1e-14)
        # EntroPIC's push may all but cancel the coefficient that it is added to
        least = abs(expected.g_logp).max() if isinstance(spec.control, Entropic) else 1e-300
        ulps = ulps_of(spec)
        assert_near(out.g_logp, expected.g_logp, ulps, least)
        assert (out.g_entropy is None) == (expected.g_entropy is None)
        if out.g_entropy is not None:
            assert_near(out.g_entropy, expected.g_entropy, ulps)
    errors.raise_now(arrays[0].device)


FAR = ("abs+", "aspo_tight", "bounded", "cispo", "dcpo_tight", "dro", "dual", "floor", "k2",
       "kl_ratio", "kl_two_sided", "low_var", "low_var+", "many_kl_cov_ref", "sapo",
       "tv_narrow")  # fmt: skip


@pytest.mark.parametrize("name", FAR)
def test_far_policies(device: Device, kernels: Any, name: str) -> None:
    """Ratios and estimates that reach every bound of a term; some advantages are 0."""
    rng, n, spec = np.random.default_rng(3), 600, SPECS[name]
    x: dict[str, Any] = {
        key: -20 * rng.random(n) for key in ("logp", "old_logp", "ref_logp", "rollout_logp")
    }
    x["old_logp"][::3] = x["logp"][::3] + rng.normal(0, 0.2, len(x["logp"][::3]))
    x["entropy"] = 2 * rng.random(n)
    x |= {"advantages": rng.normal(size=n) * (rng.random(n) < 0.9), "mask": rng.random(n) < 0.9}
    cu_seqlens = np.arange(0, n + 1, 50, dtype=np.int32)
    options = {"cu_seqlens": cu_seqlens, "token_ids": rng.permutation(n)}
    _, expected = coefficients(**x, spec=spec, **options)
    with NothingIsRead():
        arrays, more = there(x, device), there(options, device)
        _, out = coefficients(**arrays, spec=spec, kernels=kernels, **more)
    assert out.loss == pytest.approx(expected.loss, rel=1e-12)
    assert out.metrics == pytest.approx(expected.metrics, rel=1e-11)
    assert_near(out.g_logp, expected.g_logp, ulps_of(spec))
    if expected.g_entropy is not None:
        assert_near(out.g_entropy, expected.g_entropy, ulps_of(spec))
    errors.raise_now(arrays["logp"].device)


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 513])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_of_tokens(device: Device, kernels: Any, n: int, dtype: Any) -> None:
    """None, one, a block but one and what is behind it. Tokens outside of the mask are no number,
    and arrays are not aligned."""
    rng, spec = np.random.default_rng(n), SPECS["dual"]
    x: dict[str, Any] = {key: rng.normal(size=n + 1).astype(dtype) for key in ("logp", "old_logp")}
    x["advantages"] = rng.normal(size=n + 1).astype(dtype)
    mask = rng.random(n + 1) < 0.8
    for array in x.values():
        array[~mask] = np.nan
    x["mask"] = mask
    with np.errstate(invalid="ignore"):
        _, truth = coefficients(**{k: array[1:] for k, array in x.items()}, spec=spec)
    moved = {k: array[1:] for k, array in there(x, device).items()}
    with NothingIsRead():
        _, out = coefficients(**moved, spec=spec, kernels=kernels)
    assert_near(out.g_logp, truth.g_logp, 0)
    assert out.loss == pytest.approx(truth.loss, rel=1e-12)
    assert out.metrics == pytest.approx(truth.metrics, rel=1e-11)
    errors.raise_now(torch.device(device.name))


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_a_term_without_weight_may_be_infinite(
    device: Device, kernels: Any, aggregation: Any
) -> None:
    spec = PolicyLossSpec(kl=KL("k3", 0.0), aggregation=aggregation)
    logp, advantages = torch.full((2, 3), -1.0), torch.ones(2, 3)
    t = device.put(logp, logp, advantages, advantages > 0, logp + 800)
    _, out = coefficients(*t[:4], spec, ref_logp=t[4], kernels=kernels)
    assert out.loss == pytest.approx(-1)
    np.testing.assert_allclose(here(out.g_logp), -1 / 6)
    errors.raise_now(t[0].device)


@pytest.mark.parametrize("name", ["dapo", "clip_cov", "kl_cov", "gspo", "m2po", "own_kl"])
def test_policy_loss(
    device: Device, kernels: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The public function, and its gradients."""
    assert registry.token_kernels_of(torch.zeros(1, device=device.name)) is kernels
    batch = make_batch(7, (9, 150), np.float32)
    spec, t = SPECS[name], tensors(batch)
    both = []
    for name_of in (device.name, "cpu"):
        leaves = with_grad({k: x.to(name_of) for k, x in t.items()})
        loss, metrics = policy_loss_of(leaves, spec)
        loss.backward()
        both.append((loss, metrics, leaves["logp"].grad))
        # the CPU's
        monkeypatch.undo()
    (loss, metrics, g), (expected, numbers, truth) = both
    assert loss.device.type == torch.device(device.name).type
    assert loss.item() == pytest.approx(expected.item(), rel=2**-22)
    assert metrics.keys() == numbers.keys()
    for key, x in metrics.items():
        assert x.item() == pytest.approx(numbers[key].item(), rel=1e-6, abs=1e-9), key
    assert_near(g, truth, ulps_of(spec))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", ll.corrections)
def test_weights_of_a_rollout(device: Device, kernels: Any, name: str, packed: bool) -> None:
    """Those of the CPU, made where the log-probs are; nothing is read."""
    padded = make_batch(50, dtype=np.float32)
    batch, cu_seqlens = padded.packed() if packed else (padded, None)
    given = [batch.old_logp, batch.optional["rollout_logp"], batch.mask]
    truth = ll.rollout_weights(*given, ll.corrections[name], cu_seqlens=cu_seqlens)
    arrays = there(dict(zip("abc", given, strict=True)), device).values()
    lengths = None if cu_seqlens is None else there(cu_seqlens, device)
    with NothingIsRead():
        found = ll.rollout_weights(*arrays, ll.corrections[name], cu_seqlens=lengths)
    assert {x.device.type for x in found[:2]} == {torch.device(device.name).type}
    # rounded to float32 behind sums in another order
    np.testing.assert_allclose(here(found.weights), truth.weights, rtol=3e-7)
    np.testing.assert_array_equal(here(found.keep), truth.keep)
    for key, x in found.metrics.items():
        assert x.item() == pytest.approx(truth.metrics[key], rel=1e-11, abs=1e-14), key
    errors.raise_now(found.weights.device)


def test_a_weight_that_is_none_is_flagged(device: Device, kernels: Any) -> None:
    """One that its dtype does not hold, and one of a log-prob that is not finite."""
    old, mask = torch.zeros(3), torch.ones(3, dtype=torch.bool)
    for bad, correction in ((-800.0, ll.Correction("token", high=1e300)),
                            (float("nan"), ll.corrections["tis"])):  # fmt: skip
        rollout = torch.tensor([0.0, bad, 0.0])
        ll.rollout_weights(*device.put(old, rollout, mask), correction)
        with pytest.raises(RuntimeError, match="rollout_weights: row 1: a value of its token"):
            errors.raise_now(torch.device(device.name))


def test_the_next_loss_names_a_wrong_token(device: Device, kernels: Any) -> None:
    """Where no other op is called."""
    x, mask = device.put(torch.zeros(3), torch.ones(3, dtype=torch.bool))
    bad = torch.where(torch.arange(3, device=x.device) == 1, float("nan"), x)
    ll.policy_loss(bad, x, x, mask, ll.presets["ppo"])
    device.wait()
    with pytest.raises(RuntimeError, match="policy_loss: row 1: a value of its token"):
        ll.policy_loss(x, x, x, mask, ll.presets["ppo"])
    ll.policy_loss(x, x, x, mask, ll.presets["ppo"])
    errors.raise_now(x.device)


def test_some_tokens_are_flagged_by_their_places(device: Device, kernels: Any) -> None:
    values, mask = torch.zeros(12), torch.ones(12, dtype=torch.bool)
    index, good = torch.tensor([5, 9, 2]), torch.tensor([True, False, True])
    values, mask, index, good = device.put(values, mask, index, good)
    some = make_tokens(values, values, mask, kernels=kernels).at(index)
    kernels.refuse(some, good, lambda i: "")
    kernels.done("batch_stats")
    with pytest.raises(RuntimeError, match="batch_stats: row 9: "):
        errors.raise_now(values.device)


@pytest.mark.parametrize(
    "what, spec",
    [("logp", "ppo"), ("advantages", "ppo"), ("entropy", "many_top_entropy"), ("far", "ppo"),
     ("twice", "many_kl_cov"), ("negative", "many_kl_cov")],
)  # fmt: skip
def test_a_wrong_token_is_flagged(
    device: Device, kernels: Any, monkeypatch: pytest.MonkeyPatch, what: str, spec: str
) -> None:
    """With its place, at the next call; with LOGITLESS_CHECK in the call itself."""
    batch = make_batch(7, (9, 150), np.float32)
    t = {k: x.to(device.name) for k, x in tensors(batch).items()}
    place, other = np.flatnonzero(batch.mask)[[170, 90]]
    if what in ("twice", "negative"):
        ids = t["token_ids"].view(-1)
        ids[int(place)] = ids[int(other)] if what == "twice" else -3
    elif what == "far":
        t["old_logp"].view(-1)[int(place)] = -800.0
        t["advantages"] = t["advantages"] * 0 - 1
    else:
        t[what].view(-1)[int(place)] = float("nan")
    policy_loss_of(t, SPECS[spec])
    with pytest.raises(RuntimeError, match=f"row {place}: a value of its token"):
        errors.raise_now(t["logp"].device)
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    with pytest.raises(ValueError, match=f"row {place}: a value of its token"):
        policy_loss_of(t, SPECS[spec])
