"""Runs the advantages of verl on one batch and writes what they give, for the tests to replay.

    python tests/golden/advantages/make_advantages.py      # tests/golden/advantages/advantages.json

In the environment that make.py describes; TRL is not needed.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

B, T = 9, 7
SINGLE = 8


class Config(dict[str, Any]):
    """What verl asks of its configuration here."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def make_batch() -> dict[str, torch.Tensor]:
    """Groups of three, two, three and one answers, out of order; the third is wrong throughout.
    Unequal lengths and a hole."""
    g = torch.Generator().manual_seed(5)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(B, T, generator=g, dtype=torch.float64)

    mask = torch.arange(T) < torch.tensor([7, 4, 2, 6, 6, 5, 3, 1, 4])[:, None]
    holes = mask.clone()
    holes[0, 3] = holes[4, 1] = False
    old_logp = uniform(-3, -0.05)
    return {
        "groups": torch.tensor([4, 9, 4, 2, 4, 2, 9, 2, 7]),
        "scores": torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.75]).double(),
        "format": torch.tensor([0.0, 1.0, 1.0, 0.5, 0.0, 1.0, 1.0, 0.0, 1.0]).double(),
        "greedy": torch.tensor([0.5, 1.0, 0.0, 0.0, 0.25, 1.0, 0.0, 0.5, 0.0]).double(),
        "mask": mask,
        "holes": holes,
        "rewards": uniform(-1, 1),
        "values": uniform(-1, 1),
        "old_logp": old_logp,
        "sum_p2": (2 * old_logp).exp() + uniform(0, 0.2) * (1 - old_logp.exp()) ** 2,
        "weights": uniform(0.5, 1.5),
    }


def cases(x: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Functions of answers: a number an answer. Of tokens: [B, T]."""
    index = x["groups"].numpy()
    mask, holes = x["mask"].double(), x["holes"].double()
    # the score of an answer at its last token
    last = mask * (mask.cumsum(1) == mask.sum(1, keepdim=True))
    outcome = x["scores"][:, None] * last

    def run(name: str, m: torch.Tensor = mask, keep: Any = slice(None), **options: Any) -> Any:
        given = {"token_level_rewards": outcome, "response_mask": m, "index": index} | options
        rows = {
            k: v[keep] if isinstance(v, (torch.Tensor, np.ndarray)) else v for k, v in given.items()
        }
        return get_adv_estimator_fn(name)(**rows)[0] * m[keep]

    def answers(name: str, **options: Any) -> list[float]:
        return run(name, **options)[:, 0].tolist()

    def tokens(name: str, m: torch.Tensor, **options: Any) -> list[list[float]]:
        return run(name, m, token_level_rewards=x["rewards"], **options).tolist()

    def several(*, weights: Any) -> list[float]:
        prompts = torch.ones(B, 2).long()
        attention = torch.cat([prompts, mask.long()], 1)
        batch = {"prompts": prompts, "attention_mask": attention[pairs]}
        kinds = {name: x[name][pairs].numpy() for name in ("scores", "format")}
        keys = Config(gdpo_reward_keys=list(kinds), gdpo_reward_weights=weights)
        return answers("gdpo", keep=pairs, config=keys, non_tensor_batch=kinds, batch=batch)

    scaled, plain = Config(norm_adv_by_std_in_grpo=True), Config(norm_adv_by_std_in_grpo=False)
    # of a single answer it has none
    pairs = np.arange(B) != SINGLE
    otb = {"old_log_probs": x["old_logp"], "sum_pi_squared": x["sum_p2"]}
    advantage = get_adv_estimator_fn("gae")
    gae, gae_returns = advantage(x["rewards"], x["values"], holes, 0.9, 0.8)
    return {
        "answers": {
            "grpo": answers("grpo"),
            "grpo_vectorized": answers("grpo_vectorized"),
            "dr_grpo": answers("grpo", norm_adv_by_std_in_grpo=False),
            "rloo": answers("rloo"),
            "rloo_vectorized": answers("rloo_vectorized"),
            "opo": answers("opo"),
            "gpg": answers("gpg"),
            "gpg.f_norm": answers("gpg", f_norm=0.5),
            "grpo_passk": answers("grpo_passk", keep=pairs, config=scaled),
            "grpo_passk.unscaled": answers("grpo_passk", keep=pairs, config=plain),
            "reinforce_plus_plus_baseline": answers("reinforce_plus_plus_baseline", keep=pairs),
            "gdpo": several(weights=None),
            "gdpo.weights": several(weights=[0.5, 2.0]),
        },
        "tokens": {
            "reinforce_plus_plus": tokens("reinforce_plus_plus", holes, config=Config(gamma=0.9)),
            "remax": tokens("remax", holes, reward_baselines=x["greedy"]),
            "gae": (gae * holes).tolist(),
            "gae.returns": (gae_returns * holes).tolist(),
            "optimal_token_baseline": tokens("optimal_token_baseline", mask, **otb),
            "optimal_token_baseline.weights": tokens(
                "optimal_token_baseline", mask, rollout_is_weights=x["weights"], **otb
            ),
            "tir_optimal_token_baseline": tokens("tir_optimal_token_baseline", holes, **otb),
        },
    }


def main() -> None:
    batch = make_batch()
    found = {"verl": version("verl"), "torch": version("torch")}
    inputs = {name: x.tolist() for name, x in batch.items()}
    text = json.dumps({"made_with": found, "inputs": inputs, **cases(batch)})
    Path(__file__).with_name("advantages.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
