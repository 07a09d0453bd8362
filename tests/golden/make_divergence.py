"""Runs TRL's divergence of two heads and writes what it gives, for the tests to replay.

    pip install torch==2.13.0 transformers trl==1.16.0
    python tests/golden/make_divergence.py            # tests/golden/divergence.json

In an environment of its own: the tests do not need TRL.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

N, H, G, V = 5, 6, 4, 40
BETAS = (0.0, 0.3, 0.5, 0.9, 1.0)
# temperature, and of each head a scale and a softcap
CHAINS = ((1.0, 1.0, None, 1.0, None), (0.7, 1.3, 8.0, 0.5, None), (2.0, 1.0, None, 1.0, 6.0))


def main() -> None:
    g = torch.Generator().manual_seed(7)
    shapes = {
        "hidden": (N, H), "weight": (V, H), "bias": (V,), "teacher_hidden": (N, G),
        "teacher_weight": (V, G), "teacher_bias": (V,), "upstream": (N,),
    }  # fmt: skip
    inputs = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
    upstream = inputs["upstream"]
    cases: list[dict[str, Any]] = []
    for beta in BETAS:
        for temperature, *chain in CHAINS:
            student = [inputs[k].clone().requires_grad_() for k in ("hidden", "weight", "bias")]
            teacher = [inputs[f"teacher_{k}"] for k in ("hidden", "weight", "bias")]
            divergence, entropy = ChunkedDivergenceFunction.apply(
                *student, *teacher, beta, temperature, *chain
            )
            (divergence * upstream).sum().backward()
            cases.append(
                {
                    "beta": beta, "temperature": temperature, "chain": chain,
                    "divergence": divergence.tolist(), "entropy": entropy.tolist(),
                    **{
                        f"d{name}": x.grad.tolist()
                        for name, x in zip(("hidden", "weight", "bias"), student, strict=True)
                    },
                }
            )  # fmt: skip
    written = {
        "trl": version("trl"),
        "inputs": {name: x.tolist() for name, x in inputs.items()},
        "cases": cases,
    }
    Path(__file__).with_name("divergence.json").write_text(json.dumps(written) + "\n")


if __name__ == "__main__":
    main()
