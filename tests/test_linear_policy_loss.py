"""linear_policy_loss is linear_token_stats and policy_loss in one, under every spec."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from loss_cases import SPECS
from tolerances import assert_gradients, assert_values

import logitless as ll

B, T, H, V = 4, 6, 8, 2500


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    data = {
        "hidden": torch.randn(B, T, H, generator=g),
        "weight": torch.randn(V, H, generator=g),
        "targets": torch.randint(0, V, (B, T), generator=g),
        "advantages": torch.randn(B, T, generator=g),
        "mask": torch.rand(B, T, generator=g) > 0.25,
    }
    logp = ll.linear_token_stats(data["hidden"], data["weight"], data["targets"]).logp
    data["old_logp"] = logp + 0.3 * torch.randn(B, T, generator=g)
    return data


def spec_of(name: str) -> ll.PolicyLossSpec:
    """The spec, selecting enough of 24 tokens to matter."""
    spec = SPECS[name]
    wide: dict[str, Any] = {
        "ClipCov": {"fraction": 0.3, "low": 0.01, "high": 50.0},
        "ClipB": {"mu": 0.1},
        "ClipV": {"mu": 0.0, "max_fraction": 0.3},
        "OffPolicyMask": {"delta": 0.01},
    }
    if spec.control is None or not (spec.selects or type(spec.control).__name__ in wide):
        return spec
    changes = wide.get(type(spec.control).__name__, {"fraction": 0.3})
    control: Any = spec.control
    return dataclasses.replace(spec, control=dataclasses.replace(control, **changes))


def inputs_of(spec: ll.PolicyLossSpec, data: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the spec needs beside the usual. The rollout's policy differs in but some sequences."""
    options: dict[str, Any] = {}
    some = torch.arange(B)[:, None] > 1
    shifts: dict[str, Any] = {"ref_logp": 0.1, "rollout_logp": 0.05 * some}
    for name in spec.needs & shifts.keys():
        options[name] = data["old_logp"] - shifts[name]
    if "entropy_change" in spec.needs:
        head = (data[k].detach() for k in ("hidden", "weight", "targets"))
        scored = ll.linear_token_stats(*head, temperature=0.9, extras=("entropy_change",))
        ids = ll.token_ids(torch.arange(B)[:, None].expand(B, T), torch.arange(T).expand(B, T), T)
        options["token_ids"] = ids
        options["batch"] = ll.batch_stats(
            scored.logp, data["advantages"], data["mask"], spec, token_ids=ids, seed=0, step=0,
            entropy_change=scored.extras["entropy_change"],
        )  # fmt: skip
    return options


@pytest.mark.parametrize("name", SPECS)
def test_every_spec(name: str) -> None:
    spec, data = spec_of(name), batch()
    options = inputs_of(spec, data)
    leaves = [data[k].requires_grad_() for k in ("hidden", "weight")]
    out = ll.linear_policy_loss(**data, spec=spec, temperature=0.9, **options)
    gradients = torch.autograd.grad(out.loss, leaves)
    plain = ll.linear_token_stats(*leaves, data["targets"], temperature=0.9, backend="torch")
    expected = ll.policy_loss(
        plain.logp, data["old_logp"], data["advantages"], data["mask"], spec,
        entropy=plain.entropy, **options,
    )  # fmt: skip
    right = torch.autograd.grad(expected.loss, leaves)
    # the floor is one token's: a sum of n errs n times as much
    n = data["mask"].sum() if spec.aggregation == "token-sum" else 1
    assert_values(out.loss.view(1) / n, expected.loss.detach().view(1) / n, torch.float32)
    for ours, truth in zip(gradients, right, strict=True):
        assert truth.abs().max() > 0
        assert_gradients(ours, truth, torch.float32, scale=5)
    assert out.metrics.keys() == expected.metrics.keys()
    assert not out.logp.requires_grad
    assert not out.entropy.requires_grad
    assert_values(out.logp[data["mask"]], plain.logp[data["mask"]].detach(), torch.float32)


@pytest.mark.parametrize("name", ["grpo", "clip_cov", "kl_cov", "top_entropy"])
def test_micro_batches_add_up(name: str) -> None:
    """Selection over the whole batch, explicit normalisers: any split gives the same gradients."""
    spec, data = spec_of(name), batch(1)
    if spec.kl is not None:
        spec = dataclasses.replace(spec, kl=None)
    ids = ll.token_ids(torch.arange(B)[:, None].expand(B, T), torch.arange(T).expand(B, T), T)
    score = ll.linear_token_stats(data["hidden"], data["weight"], data["targets"])
    statistics = ll.batch_stats(
        score.logp, data["advantages"], data["mask"], spec, old_logp=data["old_logp"],
        entropy=score.entropy, token_ids=ids, seed=3, step=4,
    )  # fmt: skip
    weight = data["weight"].requires_grad_()

    def total(splits: list[slice]) -> tuple[torch.Tensor, torch.Tensor]:
        loss = torch.zeros(())
        for part in splits:
            rows = {k: v[part] for k, v in data.items() if k != "weight"}
            out = ll.linear_policy_loss(
                weight=weight, spec=spec, token_ids=ids[part], batch=statistics, **rows
            )
            loss = loss + out.loss
        return loss.detach(), torch.autograd.grad(loss, weight)[0]

    whole = total([slice(0, B)])
    parts = total([slice(0, 1), slice(1, 3), slice(3, B)])
    assert whole[1].abs().max() > 0
    assert_values(parts[0].view(1), whole[0].view(1), torch.float32)
    assert_gradients(parts[1], whole[1], torch.float32, scale=2)


def test_only_the_head_is_differentiable() -> None:
    data = batch(2)
    for name in ("old_logp", "advantages"):
        wrong = {**data, name: data[name].clone().requires_grad_()}
        with pytest.raises(ValueError, match=f"{name} is data"):
            ll.linear_policy_loss(**wrong, spec=ll.presets["ppo"])
    with torch.no_grad():
        assert not ll.linear_policy_loss(**data, spec=ll.presets["ppo"]).loss.requires_grad
