"""Losses of the authors of EntroPIC and SIREN and REPO's zeta, on numbers of ours, for the tests:

python -m tests.golden.make_entropy_control CORE_ALGOS DP_ACTOR SIREN_ALGOS PPO_UTILS

CORE_ALGOS is core_algos.py of github.com/yk7333/EntroPIC; DP_ACTOR and SIREN_ALGOS are
verl/verl/workers/actor/dp_actor.py and verl/verl/trainer/ppo/core_algos.py of
github.com/Linn3a/siren; PPO_UTILS is skyrl/backends/skyrl_train/utils/ppo_utils.py of
github.com/NovaSky-AI/SkyRL at pull request 1896. Only the functions of the losses run, and the few
lines of SIREN's actor between them are written here.
"""

from __future__ import annotations

import json
import pathlib
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.golden.make_batch_clips import aggregated, functions, mean

OUT = pathlib.Path(__file__).with_name("entropy_control.json")


def case(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mask = np.arange(14) < rng.integers(2, 15, size=(5, 1))
    old = -2.0 * rng.random(mask.shape) ** 2
    logp = np.minimum(old + 0.3 * rng.normal(size=mask.shape), -1e-3)
    a = np.broadcast_to(rng.normal(size=(5, 1)), mask.shape)
    # of float32, as the quantile is taken there
    h = rng.exponential(size=mask.shape).astype(np.float32).astype(np.float64)
    return {"logp": logp, "old_logp": old, "advantages": a, "entropy": h, "mask": mask}


def entropic(algos: dict[str, Any], t: dict[str, Any], alpha: float, threshold: float) -> Any:
    config: Any = type("Config", (dict,), {})()
    config.clip_ratio = config.clip_ratio_low = config.clip_ratio_high = 0.2
    logp = t["logp"].clone().requires_grad_()
    loss = algos["compute_policy_loss_entropic"](
        t["old_logp"], logp, t["advantages"], t["mask"].double(), high_prob_thresh=threshold,
        control_alpha=alpha, config=config,
    )[0]  # fmt: skip
    loss.backward()
    return {
        "coefficient": alpha, "threshold": threshold, "loss": loss.item(),
        "grad": logp.grad.tolist(),
    }  # fmt: skip


def siren(
    actor: dict[str, Any], algos: dict[str, Any], t: dict[str, Any], quantile: float, anchor: float
) -> Any:
    # the actor pads with zeros
    entropy, mask = (t["entropy"] * t["mask"]).requires_grad_(), t["mask"]
    chosen = entropy
    # the actor masks twice; the second time changes nothing
    for _ in range(2):
        chosen, above, _ = actor["mask_by_quantile"](chosen, mask, 1, quantile)
    found = algos["agg_loss"](chosen, above.double(), "seq-mean-token-mean")
    loss = 0.005 * (found - anchor).pow(2).mean()
    loss.backward()
    return {
        "quantile": quantile, "anchor": anchor, "mean": found.item(), "loss": loss.item(),
        "grad": entropy.grad.tolist(),
    }  # fmt: skip


def zetas(utils: dict[str, Any]) -> Any:
    rng, zeta, path = np.random.default_rng(0), 1e-3, []
    entropies = [*rng.uniform(0.3, 0.6, 25), *rng.uniform(0.0, 0.3, 25), 0.3, *rng.random(30)]
    for entropy in entropies:
        zeta = utils["repo_r_update_zeta"](zeta, entropy, 0.3, 1e-4, 0.05)
        path.append(zeta)
    return {"entropy": [float(x) for x in entropies], "zeta": path}


def main(entropic_path: str, actor_path: str, algos_path: str, utils_path: str) -> None:
    known: dict[str, Any] = {"torch": torch, "verl_F": SimpleNamespace(masked_mean=mean)}
    core = functions(entropic_path, **known)
    core["agg_loss"] = aggregated
    actor, algos = functions(actor_path, **known), functions(algos_path, **known)
    losses = []
    pushes = ((0.6, 0.5), (-0.9, 0.8), (0.25, 0.95), (-0.4, 0.7))
    anchors = ((0.8, 1.5), (0.6, 3.0), (0.9, 0.4), (0.75, 2.0))
    for seed in range(4):
        arrays = case(seed)
        t = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}
        losses.append({
            **{name: x.tolist() for name, x in arrays.items()},
            "entropic": entropic(core, t, *pushes[seed]),
            "siren": siren(actor, algos, t, *anchors[seed]),
        })  # fmt: skip
    made = {"losses": losses, "repo": zetas(functions(utils_path, **known))}
    OUT.write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
