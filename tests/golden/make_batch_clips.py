"""Losses of the authors of M2PO and BAPO, on numbers of ours, for the tests to replay:

python -m tests.golden.make_batch_clips CORE_ALGOS POLICY_LOSS

CORE_ALGOS is verl/trainer/ppo/core_algos.py of github.com/Infini-AI-Lab/M2PO, POLICY_LOSS is
recipe/bapo/policy_loss.py of github.com/WooooDyy/BAPO. Only the functions of the losses run,
without the trainer around them: its masked mean is written here.
"""

from __future__ import annotations

import ast
import json
import pathlib
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

OUT = pathlib.Path(__file__).with_name("batch_clips.json")


def functions(path: str, **known: Any) -> dict[str, Any]:
    """The functions that a file defines, without their decorators and annotations."""
    tree = ast.parse(pathlib.Path(path).read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in found:
        node.decorator_list = []
    future: Any = ast.parse("from __future__ import annotations").body
    code = compile(ast.Module(future + found, []), path, "exec")
    names = dict(known)
    exec(code, names)
    return names


def mean(values: Any, mask: Any) -> Any:
    return (values * mask).sum() / mask.sum()


def aggregated(loss_mat: Any, loss_mask: Any, loss_agg_mode: str) -> Any:
    assert loss_agg_mode == "token-mean"
    return mean(loss_mat, loss_mask)


def case(seed: int, spread: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(5, 12))
    mask = np.arange(12) < rng.integers(3, 13, size=(5, 1))
    a = np.broadcast_to(rng.normal(size=(5, 1)), mask.shape)
    # positive and negative ones weigh about the same, and so the ratios decide
    a = a - a[mask].mean()
    logp = old + spread * rng.normal(size=mask.shape)
    return {"logp": logp, "old_logp": old, "advantages": a, "mask": mask}


def main(m2po_path: str, bapo_path: str) -> None:
    known = {"torch": torch, "verl_F": SimpleNamespace(masked_mean=mean), "agg_loss": aggregated}
    m2po = functions(m2po_path, **known)
    m2po.update(agg_loss=aggregated, get_ratio_stats=lambda *_: {})
    bapo = functions(bapo_path, **known)
    numbers = SimpleNamespace(
        ratio_lower_start=0.6, ratio_lower_max=0.8, ratio_lower_step=0.05, ratio_upper_start=1.2,
        ratio_upper_max=2.0, ratio_upper_step=0.05, adv_ratio_target=1.0, eps=1e-8,
    )  # fmt: skip
    cases = []
    for seed in range(12):
        arrays = case(seed, (0.1, 0.4, 1.0)[seed % 3])
        t = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}
        results: dict[str, Any] = {}
        target = (0.8, 0.9, 1.0, 1.1)[seed % 4]
        for name in ("m2po", "bapo"):
            logp = t["logp"].clone().requires_grad_()
            given = (t["old_logp"], logp, t["advantages"], t["mask"].double())
            if name == "m2po":
                limits = {"miniclip_low": 0.05, "miniclip_high": 0.06}
                loss, *_, stats = m2po["compute_m2po_policy_loss"](*given, M2_budget=0.04, **limits)
                bounds = [1 - stats["m2po/clip_low"], 1 + stats["m2po/clip_high"]]
            else:
                config: Any = type("Config", (dict,), {"policy_loss": numbers, "clip_ratio": 0.2})()
                numbers._bapo_metrics_buffer = []
                numbers.adv_ratio_target = target
                loss = bapo["compute_policy_loss_bapo"](*given, config=config)[0]
                last = numbers._bapo_metrics_buffer[-1]
                bounds = [last["clip_low"], last["clip_high"]]
            loss.backward()
            assert logp.grad is not None
            results[name] = {
                "loss": loss.item(), "bounds": bounds, "grad": logp.grad.tolist(),
            }  # fmt: skip
        cases.append({"target": target, **{k: x.tolist() for k, x in arrays.items()}, **results})
    OUT.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
