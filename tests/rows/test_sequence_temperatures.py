"""A temperature per sequence is that of each of its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import logitless as ll
from tests.support.heads import B, T, V, batch
from tests.support.plans import LEAVES
from tests.support.tolerances import assert_bitwise_equal

EACH = torch.tensor([0.5, 1.0, 0.7, 2.0])
DATA = batch(31)


def outputs(name: str, temperature: Any, data: dict[str, Any]) -> tuple[Any, ...]:
    hidden, weight = data["hidden"], data["weight"]
    rest = {"temperature": temperature, "mask": data["mask"], "extras": ("mean_logit",)}
    out: Any
    if name == "token_stats":
        logits = hidden @ weight.T
        out = ll.token_stats(logits, data["targets"], **rest)
    elif name == "linear_token_stats":
        out = ll.linear_token_stats(hidden, weight, data["targets"], **rest)
    else:
        out = ll.linear_policy_loss(
            hidden, weight, data["targets"], data["old_logp"], data["advantages"],
            spec=ll.presets["grpo"], **rest,
        )  # fmt: skip
    # `.selected` is None here
    fields = [x for x in out[1:] if x is not None and not isinstance(x, dict)]
    return out[0], *fields, out.extras["mean_logit"]


@pytest.mark.parametrize("shape", [(B,), (B, 1)], ids=str)
@pytest.mark.parametrize("name", ["token_stats", "linear_token_stats", "linear_policy_loss"])
def test_the_same_bits_as_per_token(name: str, shape: tuple[int, ...]) -> None:
    per_token, per_sequence = EACH[:, None].expand(B, T).contiguous(), EACH.view(shape)
    found = []
    for temperature in (per_token, per_sequence):
        data = {k: v.detach().requires_grad_() if k in LEAVES else v for k, v in DATA.items()}
        out = outputs(name, temperature, data)
        loss = out[0].sum()
        found.append((*out, *torch.autograd.grad(loss, [data[k] for k in LEAVES])))
    for a, b in zip(*found, strict=True):
        assert_bitwise_equal(a.detach(), b.detach())
    arrays = {k: v.numpy() for k, v in DATA.items()}
    for a, b in zip(
        outputs(name, per_token.numpy(), arrays), outputs(name, per_sequence.numpy(), arrays),
        strict=True,
    ):  # fmt: skip
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("shape", [(T,), (1, T), (B, 2), (1,), (B, T, 1)], ids=str)
def test_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="temperature must be targets"):
        outputs("linear_token_stats", torch.ones(shape), DATA)


def test_packed_tokens_have_no_sequences_here() -> None:
    flat = {k: v.flatten(0, 1) if k != "weight" else v for k, v in DATA.items()}
    with pytest.raises(ValueError, match="temperature must be targets"):
        outputs("token_stats", EACH, flat)


def test_a_bad_one_is_named_by_its_row() -> None:
    bad = EACH.clone()
    bad[2] = -1.0
    with pytest.raises(ValueError, match=rf"temperature must be finite and > 0.*row {2 * T}"):
        outputs("linear_token_stats", bad, {**DATA, "mask": torch.ones(B, T, dtype=torch.bool)})
    assert V > 2048
