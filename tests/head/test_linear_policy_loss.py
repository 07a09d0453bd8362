"""linear_policy_loss is linear_token_stats and policy_loss in one, under every spec."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import logitless as ll
from tests.support.heads import B, T, batch, inputs_of, spec_of
from tests.support.losses.loss_specs import SPECS
from tests.support.tolerances import assert_gradients, assert_values


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


@pytest.mark.parametrize(
    "name", ["grpo", "clip_cov", "kl_cov", "top_entropy", "entropic_falls", "siren_high"]
)
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


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("numpy", [False, True])
def test_a_temperature_of_each_packed_sequence(numpy: bool, column: bool) -> None:
    spec, data = spec_of("grpo"), batch()
    advantages = data.pop("advantages").expand(B, T)
    weight = data.pop("weight")
    packed = {name: x.reshape(B * T, *x.shape[2:]) for name, x in data.items()}
    lengths = torch.tensor([T - 1, T + 1, *[T] * (B - 2)])
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    heat = torch.linspace(0.5, 1.5, B)
    given = {**packed, "weight": weight, "advantages": advantages.flatten(), "cu_seqlens": ends}

    def call(temperature: torch.Tensor) -> Any:
        tensors = {**given, "temperature": temperature}
        arrays: Any = {name: x.numpy() if numpy else x for name, x in tensors.items()}
        return ll.linear_policy_loss(**arrays, spec=spec)

    found = call(heat[:, None] if column else heat)
    truth = call(heat.repeat_interleave(lengths))
    for name in ("loss", "logp", "entropy"):
        assert torch.equal(*(torch.as_tensor(getattr(x, name)) for x in (found, truth)))
    with pytest.raises(ValueError, match="temperature must be"):
        call(heat[1:])
