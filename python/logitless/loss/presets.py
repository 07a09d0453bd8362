"""The table of losses: a row is a paper, its formula and its choice on every axis of the spec."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from logitless.loss.spec import Clip, ClipCov, KLCov, PolicyLossSpec, TopEntropy, Unclipped


@dataclass(frozen=True)
class Preset:
    """A row of the table. In `formula`, r = exp(logp - old_logp) and A is the advantage."""

    spec: PolicyLossSpec
    formula: str
    paper: str
    note: str = ""


TABLE: dict[str, Preset] = {
    "ppo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), aggregation="token-mean"),
        "mean over tokens of -min(A r, A clip(r, 0.8, 1.2))",
        "Schulman et al. 2017, arXiv:1707.06347",
    ),
    "grpo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), aggregation="seq-mean-token-mean"),
        "mean over sequences of the token mean of -min(A r, A clip(r, 0.8, 1.2))",
        "Shao et al. 2024, arXiv:2402.03300",
        "The paper adds 0.04 * k3 against a reference: replace(spec, kl=KL('k3', 0.04)).",
    ),
    "dr_grpo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), aggregation="seq-mean-token-sum-norm"),
        "sum of -min(A r, A clip(r, 0.8, 1.2)) / (sequences * max_length)",
        "Liu et al. 2025, arXiv:2503.20783",
        "Set max_length to the generation limit. Its advantages are not divided by the group's "
        "standard deviation.",
    ),
    "dapo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.28), aggregation="token-mean"),
        "mean over tokens of -min(A r, A clip(r, 0.8, 1.28))",
        "Yu et al. 2025, arXiv:2503.14476",
    ),
    "clip_cov": Preset(
        PolicyLossSpec(
            surrogate=Clip(1.0, 1.0),
            control=ClipCov(fraction=2e-4, low=1.0, high=5.0),
            aggregation="token-mean",
        ),
        "mean over tokens of -min(A r, A clip(r, 0, 2)), 0 for 2e-4 of them, drawn in 1 < cov < 5",
        "Cui et al. 2025, arXiv:2505.22617",
        "The ratio clip is loose on purpose, as in the paper's runs.",
    ),
    "kl_cov": Preset(
        PolicyLossSpec(
            surrogate=Unclipped(),
            control=KLCov(fraction=2e-3, coefficient=1.0),
            aggregation="token-mean",
        ),
        "mean over tokens of -A r, plus |logp - old_logp| on the 2e-3 of largest cov",
        "Cui et al. 2025, arXiv:2505.22617",
        "The paper's 7B setting; at 32B it takes 2e-4.",
    ),
    "top_entropy": Preset(
        PolicyLossSpec(
            surrogate=Clip(0.2, 0.28), control=TopEntropy(fraction=0.2), aggregation="token-mean"
        ),
        "mean over tokens of -min(A r, A clip(r, 0.8, 1.28)), 0 outside the 20% of largest entropy",
        "Wang et al. 2025, arXiv:2506.01939",
    ),
}


class Presets(Mapping[str, PolicyLossSpec]):
    """name -> PolicyLossSpec. `presets.table[name]` also has the formula, the paper and a note."""

    table: Mapping[str, Preset] = TABLE

    def __getitem__(self, name: str) -> PolicyLossSpec:
        if name not in self.table:
            nearest = difflib.get_close_matches(str(name), self.table, n=1, cutoff=0.0)
            raise KeyError(
                f"no preset {name!r}; did you mean {nearest[0]!r}? "
                f"There are: {', '.join(self.table)}"
            )
        return self.table[name].spec

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, name: object) -> bool:
        return name in self.table


presets = Presets()
