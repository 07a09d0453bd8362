"""The table of losses: a row is a paper, its formula and its choice on every axis of the spec."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from logitless.inputs.checks import instance, shown
from logitless.loss.spec import (
    KL,
    Aggregation,
    Aspo,
    Bapo,
    BoundedClip,
    Cispo,
    Clip,
    ClipB,
    ClipCov,
    ClipV,
    Dcpo,
    Dro,
    Entropic,
    EntropyAdvantage,
    EntropyBonus,
    EntropyRatioClip,
    EntropyWeights,
    Gmpo,
    KLCov,
    M2po,
    NoPolicy,
    OffPolicyMask,
    PolicyLossSpec,
    Reinforce,
    RepoD,
    RepoR,
    Sapo,
    SignWeights,
    Siren,
    Steer,
    TopEntropy,
    TrustMask,
    Unclipped,
    Vespo,
)


@dataclass(frozen=True)
class Preset:
    """A row of the table. In `formula`, r = exp(logp - old_logp) and A is the advantage.

    `mean` is over the valid tokens of the batch, `mean_i` over its sequences, `mean_t` over the
    valid tokens of one; s is the sequence's ratio; sg stops the gradient.
    """

    spec: PolicyLossSpec
    formula: str
    paper: str
    note: str = ""


_SEQUENCE: Aggregation = "seq-mean-token-mean"
_SCORE = PolicyLossSpec(ratio="none", surrogate=Reinforce())
_LOOSE = Clip(1.0, 1.0)
_COVARIANCE = "Cui et al. 2025, arXiv:2505.22617"
_SIGNS = "Zhu et al. 2025, arXiv:2506.01347"
_STEER = "Hao et al. 2025, arXiv:2510.10150"
_STEER_NOTE = (
    "p is within [1e-8, 1 - 1e-8], p_old at least 1e-8. The range of x is of the whole batch; the "
    "authors' code takes that of each micro-batch (scope='micro')."
)
_SIGNS_NOTE = (
    "A is the reward itself, 1 or -1. The authors' code puts the weights on PPO's clipped ratio: "
    "replace(presets['ppo'], control=spec.control)."
)
_ROLLOUT_TRUST = (
    "The authors measure from the rollout's policy: ratio='inference'; and aggregate as dr_grpo."
)

TABLE: dict[str, Preset] = {
    "ppo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2)),
        "mean of -min(A r, A clip(r, 0.8, 1.2))",
        "Schulman et al. 2017, arXiv:1707.06347",
    ),
    "ppo_dual_clip": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2, dual=3.0)),
        "as ppo, and at most -3 A where A < 0",
        "Ye et al. 2020, arXiv:1912.09729",
        "verl's default loss, vanilla.",
    ),
    "grpo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), aggregation=_SEQUENCE),
        "mean_i mean_t of -min(A r, A clip(r, 0.8, 1.2))",
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
    "bnpo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2)),
        "mean of -min(A r, A clip(r, 0.8, 1.2)), the mean over all tokens of the batch",
        "Xiao et al. 2025, arXiv:2506.02864",
        "As a loss it is ppo; what is its own are rewards normalised by a Beta distribution that "
        "follows the policy. TRL's bnpo divides by the tokens of each micro-batch instead of the "
        "batch.",
    ),
    "dapo": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.28)),
        "mean of -min(A r, A clip(r, 0.8, 1.28))",
        "Yu et al. 2025, arXiv:2503.14476",
    ),
    "intellect_2": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2, dual=4.0), aggregation=_SEQUENCE),
        "mean_i mean_t of -min(A min(r, 4), A clip(r, 0.8, 1.2))",
        "Prime Intellect 2025, arXiv:2505.07291",
        "The two-sided clip, TRL's delta: for delta >= 1 + high it is the dual clip. The paper "
        "adds 0.001 * KL against a reference: replace(spec, kl=KL('k3', 1e-3)).",
    ),
    "gspo": Preset(
        PolicyLossSpec(ratio="sequence", surrogate=Clip(3e-4, 4e-4), aggregation=_SEQUENCE),
        "mean_i of -min(A s, A clip(s, 1 - 3e-4, 1 + 4e-4)), s = exp(mean_t log r)",
        "Zheng et al. 2025, arXiv:2507.18071",
    ),
    "gspo_token": Preset(
        PolicyLossSpec(ratio="sequence_token", surrogate=Clip(3e-4, 4e-4), aggregation=_SEQUENCE),
        "as gspo with s = sg(exp(mean_t log r)) * exp(logp - sg(logp)), so that A may differ by "
        "token",
        "Zheng et al. 2025, arXiv:2507.18071",
    ),
    "luspo": Preset(
        PolicyLossSpec(
            ratio="sequence", surrogate=Clip(2e-3, 2.5e-3), aggregation="seq-mean-token-sum"
        ),
        "mean_i of -|y| min(A s, A clip(s, 1 - 2e-3, 1 + 2.5e-3)), s = exp(mean_t log r)",
        "Liu et al. 2026, arXiv:2602.05261",
    ),
    "gmpo": Preset(
        PolicyLossSpec(ratio="sequence", surrogate=Gmpo(0.4, 0.4), aggregation=_SEQUENCE),
        "mean_i of -A exp(mean_t m), m = log r clipped to [-0.4, 0.4] on the side A pushes to",
        "Zhao et al. 2025, arXiv:2507.20673",
    ),
    "cispo": Preset(
        PolicyLossSpec(surrogate=Cispo(0.2, 0.2)),
        "mean of -sg(clip(r, 0.8, 1.2)) A logp",
        "MiniMax 2025, arXiv:2506.13585",
        "Both bounds, as in verl.",
    ),
    "cispo_one_sided": Preset(
        PolicyLossSpec(surrogate=Cispo(1.0, 4.0)),
        "mean of -sg(min(r, 5)) A logp",
        "MiniMax 2025, arXiv:2506.13585",
        "A cap alone, as the paper runs it and as in TRL; 5 is ScaleRL's (arXiv:2510.13786).",
    ),
    "ce_gppo": Preset(
        PolicyLossSpec(surrogate=BoundedClip(0.2, 0.2, 0.25, 1.0, dual=10.0)),
        "mean of -A r; of a clipped token -A 1.2 r / sg(r) (A > 0), -A 0.25 * 0.8 r / sg(r) "
        "(A < 0); at most -10 A where A < 0",
        "Su et al. 2025, arXiv:2509.20712",
        "The default of the authors' code; their scripts set beta_low = 0.5 (1.5B) and 0.75 (7B).",
    ),
    "gppo": Preset(
        PolicyLossSpec(surrogate=BoundedClip(0.2, 0.2, 1.0, 1.0, dual=10.0)),
        "as ce_gppo; of a clipped token -A 1.2 r / sg(r) (A > 0), -A 0.8 r / sg(r) (A < 0)",
        "Su et al. 2025, arXiv:2508.07629",
        "Gradient-preserving clipping alone, with the bounds and the dual clip of ce_gppo's code.",
    ),
    "dcpo": Preset(
        PolicyLossSpec(surrogate=Dcpo(0.2, 0.28, 10.0, dual=10.0)),
        "mean of -min(A r, A clip(r, lo, hi)), at most -10 A where A < 0; lo = (1 + sqrt(max(0, 1 "
        "- 0.8 / p_old))) / 2, hi = min(10, (1 + sqrt(1 + 1.12 / p_old)) / 2)",
        "Yang et al. 2025, arXiv:2509.02333",
        "The paper's mean over tokens; its advantages, smoothed over steps, are yours to give.",
    ),
    "aspo": Preset(
        PolicyLossSpec(surrogate=Aspo(0.2, 0.2, 3.0)),
        "mean of -A (c / sg(c)) / sg(c), c = min(r, 1.2), where A > 0; -A max(r, 0.8) where A < 0; "
        "-3 A logp where that weighs more than 3",
        "Wang et al. 2025, arXiv:2510.06062",
        "The authors' function without the wider bounds (0.4) that it may give to tokens by their "
        "entropy.",
    ),
    "m2po": Preset(
        PolicyLossSpec(surrogate=M2po(0.04, 0.3, 0.5)),
        "mean of -min(A r, A clip(r, min(e^-t, 0.7), max(e^t, 1.5))); t the largest harmful "
        "|log r| with mean of min(log(r)^2, t^2) over the harmful tokens <= 0.04, no clip where "
        "none is needed; harmful: A > 0 and r > 1, or A < 0 and r < 1",
        "Zheng et al. 2025, arXiv:2510.01161",
        "t is of the whole batch. The authors' code finds one for each micro-batch "
        "(scope='micro'), takes the sign of A from a sequence's first token, and leaves to "
        "rounding whether the token at the bound itself is clipped.",
    ),
    "bapo": Preset(
        PolicyLossSpec(surrogate=Bapo(0.6, 0.8, 0.05, 1.2, 2.0, 0.05, 1.0, dual=3.0)),
        "mean of -min(A r, A clip(r, lo, hi)), at most -3 A where A < 0; lo rises from 0.6 to 0.8, "
        "then hi from 1.2 to 2, by 0.05 until sum of A min(r, hi) over A > 0 >= sum of -A max(r, "
        "lo) over A < 0",
        "Xi et al. 2025, arXiv:2510.18927",
        "The bounds are of the whole batch; the authors' code searches in each micro-batch "
        "(scope='micro'). The numbers are the examples of its configuration; its script takes "
        "target=0.5, high_step=0.1.",
    ),
    "sapo": Preset(
        PolicyLossSpec(surrogate=Sapo(1.0, 1.05), aggregation=_SEQUENCE),
        "mean_i mean_t of -A sigmoid(tau (r - 1)) 4 / tau, tau = 1 where A > 0, else 1.05",
        "Gao et al. 2025, arXiv:2511.20347",
    ),
    "vespo": Preset(
        PolicyLossSpec(ratio="sequence_sum", surrogate=Vespo(2.0, 3.0, 3.0, 2.0)),
        "mean of -sg(W^k exp(lambda (1 - W))) A logp, W = exp(sum_t log r); (k, lambda) = (2, 3) "
        "where A >= 0, else (3, 2)",
        "VESPO 2026, arXiv:2602.10693",
        "Where the authors correct for the rollout, W is against its policy: pass rollout_logp as "
        "old_logp.",
    ),
    "dppo_tv": Preset(
        PolicyLossSpec(surrogate=TrustMask("tv", 0.15, 0.15, cap=20.0)),
        "mean of -sg(min(r, 20)) A logp, 0 where p - p_old > 0.15 (A > 0) or < -0.15 (else)",
        "Qi et al. 2026, arXiv:2602.04879",
        _ROLLOUT_TRUST + " The cap is that of verl's function; its shipped configuration sets it "
        "to 3, the authors' runs to none.",
    ),
    "dppo_kl": Preset(
        PolicyLossSpec(surrogate=TrustMask("kl", 0.05, 0.05, cap=20.0)),
        "mean of -sg(min(r, 20)) A logp, 0 where KL(Bernoulli(p_old), Bernoulli(p)) > 0.05 and A "
        "pushes further",
        "Qi et al. 2026, arXiv:2602.04879",
        _ROLLOUT_TRUST,
    ),
    "prime_rl": Preset(
        PolicyLossSpec(
            ratio="inference",
            surrogate=TrustMask("tv", 0.2, 0.2),
            kl=KL("k2", 2e-3, against="rollout"),
        ),
        "mean of -A r, r = exp(logp - rollout_logp), 0 where p - p_rollout leaves 0.2 on the side "
        "A pushes to, + 1e-3 (log r)^2",
        "prime-rl, after arXiv:2602.04879",
        "prime-rl's default loss: the ratio is against the inference engine.",
    ),
    "ipo": Preset(
        PolicyLossSpec(
            ratio="inference",
            surrogate=TrustMask("tv", 0.1, 0.1, two_sided=True),
            kl=KL("k2", 2e-3, against="rollout"),
        ),
        "as prime_rl, 0 where |p - p_rollout| > 0.1",
        "prime-rl, after arXiv:2602.04879",
    ),
    "dro": Preset(
        PolicyLossSpec(surrogate=Dro(0.1)),
        "mean of -(A logp - 0.05 (log r)^2)",
        "Richemond et al. 2024, arXiv:2405.19107",
        "verl has no default for beta.",
    ),
    "opsm": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), control=OffPolicyMask(0.1), aggregation=_SEQUENCE),
        "as grpo, 0 for a sequence with A < 0 and mean_t(old_logp - logp) > 0.1",
        "DeepSeek-AI 2025, arXiv:2512.02556",
        "The paper measures from the rollout: OffPolicyMask(delta, against='rollout'). It gives no "
        "delta; TRL proposes 0.5, slime's default is 1e-4.",
    ),
    "reinforce": Preset(
        _SCORE,
        "mean of -A logp",
        "Williams 1992, doi:10.1007/BF00992696",
    ),
    "rloo": Preset(
        PolicyLossSpec(ratio="none", surrogate=Reinforce(), aggregation="seq-mean-token-sum"),
        "mean_i sum_t of -A logp, A with a leave-one-out baseline",
        "Ahmadian et al. 2024, arXiv:2402.14740",
        "TRL's trainer clips the ratio of whole sequences instead: ratio='sequence_sum', "
        "Clip(0.2, 0.2), 'seq-mean-token-mean'.",
    ),
    "reinforce_pp": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2)),
        "mean of -min(A r, A clip(r, 0.8, 1.2)), A normalised over the whole batch",
        "Hu et al. 2025, arXiv:2501.03262",
        "As a loss it is ppo.",
    ),
    "gpg": Preset(
        _SCORE,
        "mean of -A logp, A scaled by batch / samples of nonzero advantage",
        "Chu et al. 2025, arXiv:2504.02546",
        "As a loss it is reinforce.",
    ),
    "psr": Preset(
        PolicyLossSpec(ratio="none", surrogate=Reinforce(), control=SignWeights(1.0, 0.0)),
        "mean of -A logp where A > 0, else 0",
        _SIGNS,
        _SIGNS_NOTE,
    ),
    "nsr": Preset(
        PolicyLossSpec(ratio="none", surrogate=Reinforce(), control=SignWeights(0.0, 1.0)),
        "mean of -A logp where A < 0, else 0",
        _SIGNS,
        _SIGNS_NOTE,
    ),
    "w_reinforce": Preset(
        PolicyLossSpec(ratio="none", surrogate=Reinforce(), control=SignWeights(0.1, 1.0)),
        "mean of -A logp, times 0.1 where A > 0",
        _SIGNS,
        _SIGNS_NOTE,
    ),
    "clip_cov": Preset(
        PolicyLossSpec(surrogate=_LOOSE, control=ClipCov(fraction=2e-4, low=1.0, high=5.0)),
        "mean of -min(A r, A clip(r, 0, 2)), 0 for 2e-4 of them, drawn in 1 < cov < 5",
        _COVARIANCE,
        "The ratio clip is loose on purpose, as in the paper's runs.",
    ),
    "clip_cov_verl": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), control=ClipCov(fraction=2e-4, low=1.0, high=5.0)),
        "mean of -min(A r, A clip(r, 0.8, 1.2)), 0 for 2e-4 of them, drawn in 1 < cov < 5",
        _COVARIANCE,
        "verl's defaults; scope='micro' also selects per micro-batch as verl does.",
    ),
    "kl_cov": Preset(
        PolicyLossSpec(surrogate=Unclipped(), control=KLCov(fraction=2e-3, coefficient=1.0)),
        "mean of -A r, plus |logp - old_logp| on the 2e-3 of largest cov",
        _COVARIANCE,
        "The paper's 7B setting.",
    ),
    "kl_cov_32b": Preset(
        PolicyLossSpec(surrogate=Unclipped(), control=KLCov(fraction=2e-4, coefficient=1.0)),
        "mean of -A r, plus |logp - old_logp| on the 2e-4 of largest cov",
        _COVARIANCE,
        "The paper's 32B setting.",
    ),
    "kl_cov_verl": Preset(
        PolicyLossSpec(surrogate=Unclipped(), control=KLCov(fraction=2e-4, coefficient=0.1)),
        "mean of -A r, plus 0.1 |logp - old_logp| on the 2e-4 of largest cov",
        _COVARIANCE,
        "verl's defaults, which are neither setting of the paper.",
    ),
    "clip_b": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), control=ClipB(2.5), aggregation=_SEQUENCE),
        "as grpo, 0 where A < 0 and S < mean S - 2.5 sd S, S = p (H + logp)",
        "Clip_B and Clip_V 2026, arXiv:2602.03392",
    ),
    "clip_v": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), control=ClipV(8.5, 1e-4), aggregation=_SEQUENCE),
        "as grpo, 0 where A < 0 and D > 8.5 sd D, at most 1e-4 of the tokens; D = E_v[S_v] - S",
        "Clip_B and Clip_V 2026, arXiv:2602.03392",
        "D is the extra entropy_change: pass batch=batch_stats(..., entropy_change=...).",
    ),
    "top_entropy": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.28), control=TopEntropy(fraction=0.2)),
        "mean of -min(A r, A clip(r, 0.8, 1.28)), 0 outside the 20% of largest entropy",
        "Wang et al. 2025, arXiv:2506.01939",
        "TopEntropy(0.2, normaliser='selected') divides by the selected tokens alone.",
    ),
    "tea": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.28), control=EntropyWeights(0.1)),
        "mean of -w min(A r, A clip(r, 0.8, 1.28)), w = 0.9 + 0.1 H / mean H where A > 0, 0.9 + "
        "0.1 (1 / H) / mean (1 / H) where A < 0",
        "after Tan et al. 2025, arXiv:2508.04349",
        "Token-wise entropy-adaptive weights, data to the gradient. The paper (GTPO) shares out "
        "rewards of 1 and -1 so, among the answers of one group at one position, before it "
        "normalises them to advantages; here the advantages are yours, the means are over all "
        "tokens of a sign, and H counts as at least 0.01 in 1 / H.",
    ),
    "erc": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.28, dual=10.0), control=EntropyRatioClip(0.95, 1.05)),
        "mean of -min(A r, A clip(r, 0.8, 1.28)), at most -10 A where A < 0, 0 unless 0.95 < H / "
        "H_old < 1.05",
        "Su et al. 2025, arXiv:2512.05591",
        "Pass old_entropy, the entropies that scored old_logp.",
    ),
    "steer": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.28, dual=10.0), control=Steer(0.8)),
        "mean of -w min(A r, A clip(r, 0.8, 1.28)), at most -10 w A where A < 0; w = 0.8^(x / "
        "max(max x, 0.02)), x = |A / p_old p (1 - p) (logp + H)|",
        _STEER,
        _STEER_NOTE,
    ),
    "steer_linear": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.28, dual=10.0), control=Steer(0.8, 1.2, linear=True)),
        "as steer; w = 1.2 - 0.4 (x - min x) / (max x - min x), 1 where all x are equal",
        _STEER,
        _STEER_NOTE,
    ),
    "entropy_advantage": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), control=EntropyAdvantage(0.4, 1.0)),
        "mean of -min(B r, B clip(r, 0.8, 1.2)), B = A + min(0.4 H, |A|)",
        "Cheng et al. 2025, arXiv:2506.14758",
        "alpha and kappa as in a public reimplementation; the paper's own kappa was not read.",
    ),
    "repo_r": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), control=RepoR(1e-3)),
        "mean of -min(B r, B clip(r, 0.8, 1.2)), B = max(0, A (1 - 0.001 logp)) where A > 0, "
        "min(0, A (1 + 0.001 logp)) where A < 0",
        "Petrenko et al. 2026, arXiv:2603.11682",
        "zeta doubles or halves after each step toward a target entropy: replace(spec, "
        "control=RepoR(controller.coefficient)) with a RepoController(target).",
    ),
    "repo_d": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2), control=RepoD(1e-3)),
        "mean of -min(B r, B clip(r, 0.8, 1.2)), B = A - 0.001 (logp + H)",
        "Petrenko et al. 2026, arXiv:2603.11682",
        "The mean of logp that is taken off is exact, -H. The paper's rule for beta was not read; "
        "its size is said to lie within 0.001 and 10: RepoController(target, low=1e-3, high=10.0).",
    ),
    "entropic": Preset(
        PolicyLossSpec(surrogate=Clip(0.2, 0.2, dual=3.0), control=Entropic(0.0, 0.95)),
        "mean of -min(A r, A clip(r, 0.8, 1.2)), at most -3 A where A < 0, and mean of -alpha |A| "
        "r over the tokens with p > 0.95",
        "Yang et al. 2025, arXiv:2511.15248",
        "alpha starts at 0 and follows the entropy: replace(spec, control=Entropic("
        "controller.coefficient)) with a PIController(target); the authors' script has target=0.1. "
        "They take alpha and the mean of each micro-batch (scope='micro').",
    ),
    "siren": Preset(
        PolicyLossSpec(
            surrogate=Clip(0.2, 0.2, dual=3.0),
            entropy=Siren(0.005, quantile=0.8),
            aggregation="seq-mean-token-sum-norm",
        ),
        "mean_i sum_t of -min(A r, A clip(r, 0.8, 1.2)) / max_length, at most -3 A where A < 0, "
        "+ 0.005 (h - h_0)^2; h = mean_i of the mean H above its 0.8 quantile in the answer",
        "Jiang et al. 2025, arXiv:2509.25133",
        "H of the likeliest tokens alone: entropy_top_p=0.8 (docs/sampling.md). h_0 is the h of "
        "the first step: replace(spec, entropy=Siren(anchor=...)), None until it is known. The "
        "square is of the whole batch; the authors' code takes that of each micro-batch "
        "(scope='micro'), and leaves out the token that reaches top-p. Their script's clip of 0.28 "
        "has no effect there: the bounds of 0.2 that are set beside it count.",
    ),
    "entropy_only": Preset(
        PolicyLossSpec(ratio="none", surrogate=NoPolicy(), entropy=EntropyBonus(1e-3)),
        "mean of -0.001 H",
        "Wang et al. 2025, arXiv:2504.20571",
        "The ablation of 1-shot RLVR: no policy term at all.",
    ),
}


class Presets(Mapping[str, PolicyLossSpec]):
    """name -> PolicyLossSpec. `presets.table[name]` also has the formula, the paper and a note."""

    table: Mapping[str, Preset] = TABLE

    def __getitem__(self, name: str) -> PolicyLossSpec:
        if not isinstance(name, str) or name not in self.table:
            near = difflib.get_close_matches(str(name)[:80], self.table, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise KeyError(f"no preset {shown(name)}{hint} There are: {', '.join(self.table)}")
        return self.table[name].spec

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.table

    def text(self) -> str:
        """The table as `logitless losses` prints it."""
        from logitless.loss.spec.docs_table import text

        return text()

    def markdown(self) -> str:
        """The table as docs/losses.md."""
        from logitless.loss.spec.docs_table import markdown

        return markdown()

    def add(
        self, name: str, spec: PolicyLossSpec, formula: str, paper: str, note: str = ""
    ) -> None:
        """A row of your own, for recipes and `logitless losses`; a name is taken only once."""
        texts = {"name": name, "formula": formula, "paper": paper, "note": note}
        for argument, text in texts.items():
            instance(argument, text, (str,))
        instance("spec", spec, (PolicyLossSpec,))
        if name in self.table:
            raise ValueError(f"presets already has a row {name!r}: {self.table[name].formula}")
        TABLE[name] = Preset(spec, formula, paper, note)


presets = Presets()
