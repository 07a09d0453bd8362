"""A student and a teacher: two heads, their chains, and upstream gradients."""

from __future__ import annotations

from typing import Any

import torch

import logitless as ll

INF = float("inf")
KINDS = ("reverse_kl", "forward_kl", "jsd")
N, H, G, V = 9, 12, 7, 5000
EXTRAS = ("reverse_kl", "forward_kl")
# One id of each row's set, which has no target of its own.
ANYONE = torch.arange(N) * 977 % V
CHAINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "student": ({"softcap": 5.0, "logit_scale": 0.7, "bias": True, "temperature": True}, {}),
    "teacher": ({}, {"softcap": 4.0, "logit_scale": 1.3, "bias": True, "temperature": 0.8}),
    "both": ({"bias": True, "temperature": 1.5}, {"bias": True, "temperature": True}),
}


def beta_of(kind: str) -> float:
    return 0.3 if kind == "jsd" else 0.5


def named(out: ll.Divergence) -> dict[str, Any]:
    """All results of a call, by name."""
    return {**{k: v for k, v in out._asdict().items() if k != "extras"}, **out.extras}


def double(x: Any) -> Any:
    return x.detach().double().numpy() if isinstance(x, torch.Tensor) else x


class Call:
    """Two heads, a mask, upstream gradients with zeros, and the chains of both."""

    def __init__(self, dtype: Any, kind: str, chain: str = "plain", seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Any:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.hidden, self.teacher_hidden = normal(N, H).to(dtype), normal(N, G).to(dtype)
        self.weight, self.teacher_weight = (normal(V, n).to(dtype) / 2 for n in (H, G))
        self.mask = torch.arange(N) % 4 != 2
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.g = normal(2, N).to(wide)
        self.g[:, 5:] = 0
        self.kind, self.beta = kind, beta_of(kind)
        values = {"bias": normal(V).to(wide), "temperature": normal(N).abs() + 0.5}
        self.student, self.teacher = (
            {k: (values[k] if v is True else v) for k, v in options.items()}
            for options in CHAINS[chain]
        )

    @property
    def options(self) -> dict[str, Any]:
        teacher = {f"teacher_{name}": value for name, value in self.teacher.items()}
        if "temperature" in self.student and "temperature" not in self.teacher:
            teacher["teacher_temperature"] = 1.0
        return {"kind": self.kind, "beta": self.beta, **self.student, **teacher}

    @property
    def heads(self) -> tuple[Any, ...]:
        return self.hidden, self.weight, self.teacher_hidden, self.teacher_weight

    def oracle(self, function: Any, *arrays: Any, **more: Any) -> Any:
        chains = ({k: double(v) for k, v in x.items()} for x in (self.student, self.teacher))
        student, teacher = chains
        return function(
            *map(double, arrays), kind=self.kind, beta=self.beta, mask=self.mask.numpy(),
            student=student, teacher=teacher, **more,
        )  # fmt: skip

    def upstream(self) -> dict[str, Any]:
        return {"g_divergence": double(self.g[0]), "g_entropy": double(self.g[1])}

    def loss(self, out: ll.Divergence) -> Any:
        return (out.divergence * self.g[0] + out.entropy * self.g[1]).sum()
