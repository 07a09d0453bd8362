"""Which metrics to watch in a run, and what each of them tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from logitless.rl.report.reward_columns import PREFIX
from logitless.rl.tracking.metrics import Row


class Watched(NamedTuple):
    title: str
    key: str  # in metrics.jsonl
    unit: str
    tells: str
    zero: bool = False  # with a line at 0


WATCHED = (
    Watched(
        "Reward", "reward", "mean of the answers",
        "What is trained for. Read some answers where it jumps: a reward that can be tricked is "
        "tricked. One that stands still with a spread near 0 has nothing left to teach.",
    ),
    Watched(
        "Entropy", "entropy", "nats per token",
        "How open the next token is: 0 for one choice, ln n for an even choice among n. A steep "
        "fall towards 0 is collapse: answers become alike, and nothing new is tried. A rise that "
        "reward does not follow is noise.",
    ),
    Watched(
        "Distinct right answers", "distinct_right_answers", "per prompt",
        "How many different right answers a prompt gets. Where it falls while reward rises, the "
        "policy repeats what it knows already.",
    ),
    Watched(
        "Spread of rewards", "reward_std", "std within a prompt's answers",
        "Advantages are made of it. At 0 all answers to a prompt earn the same and teach nothing: "
        "the prompts are too easy or too hard.",
    ),
    Watched(
        "Groups without spread", "zero_spread", "share of the prompts",
        "Prompts whose answers all earn the same. The share that trains nothing grows as a task is "
        "solved; rollout.filter_groups replaces them.",
    ),
    Watched(
        "Truncation", "response_length/clip_ratio", "share of the answers",
        "Answers that were cut off at rollout.max_new_tokens. They are often scored as wrong "
        "whatever they were about to say; where the share grows, answers get longer without end.",
    ),
    Watched(
        "Length", "tokens_per_sequence", "tokens per answer",
        "A steady rise can be reasoning or padding; look at truncation and at answers.",
    ),
    Watched(
        "Ratio: clipped tokens", "actor/pg_clipfrac", "share of the tokens",
        "Tokens whose ratio of new to old probability has left the clip, so that they have no "
        "gradient. Much above 0.2 means steps that are too long, or too many on one rollout.",
    ),
    Watched(
        "Ratio: distance from the old policy", "actor/ppo_kl", "nats per token",
        "The mean of old minus new log-prob over the minibatches of a step. It should stay near 0; "
        "a spike is a step that moved the policy too far.", zero=True,
    ),
    Watched(
        "Distance from the reference", "actor/kl_loss", "KL term",
        "How far the policy is from the reference that the loss holds it at.",
    ),
    Watched(
        "Gradient norm", "grad_norm", "before it is clipped",
        "A spike is one odd batch, a steady rise the start of a divergence: lower the learning "
        "rate before the reward breaks.",
    ),
    Watched(
        "Gap between rollout and training", "logp_gap", "largest, nats",
        "The largest difference between a token's log-prob where it was sampled and where it is "
        "trained on, before the first update. Rounding alone gives 1e-6 in float32. Much more "
        "means that both are not the same model, and every ratio is wrong.",
    ),
    Watched(
        "Gap to the server", "server_logp_gap", "mean, nats",
        "The same against the server that sampled: its kernels round otherwise, so it is larger, "
        "but it should not grow.",
    ),
    Watched(
        "Covariance of log-prob and advantage", "covariance", "over the step's tokens",
        "Above 0 likely tokens are rewarded, and entropy falls by about as much; a covariance that "
        "stays high is what Clip-Cov and KL-Cov act on.", zero=True,
    ),
    Watched(
        "Selected tokens", "actor/cov_selected", "share of the tokens",
        "Tokens that the method's control has selected, whose gradient it stops, weakens or keeps.",
    ),
)  # fmt: skip

PASS = "Share of the held-out prompts that one of {k} sampled answers gets right, unbiased. "
EXPLOITS = "The first answer: how well the policy uses what it can do."
EXPLORES = (
    "Where it falls while pass@1 rises, the policy is surer of less: it no longer solves what it "
    "could solve before."
)
# Of an evaluation, but for pass@k, whose k is the run's.
EVALUATED = (
    Watched(
        "Greedy answers", "greedy_right", "share of the prompts",
        "The likeliest token at every place. Far above pass@1, the policy knows more than it "
        "samples; below it, its likeliest answer is not its best.",
    ),
    Watched(
        "Answer entropy", "answer_entropy", "nats per answer",
        "Entropy of the distinct answers to a prompt, ln n at most for n answers. It can fall "
        "while the entropy of tokens rises: more is open at each token, and less comes of it.",
    ),
    Watched(
        "Balance", "balance", "B-STaR, 0 to 1",
        "min(r / 8, 1) r / n for n distinct answers to a prompt, r of them right: high where many "
        "answers differ and are right, low where the policy explores nothing, or errs.",
    ),
    Watched(
        "Prompts lost", "support_shrink", "share of the prompts",
        "Prompts of which some answer was right at the start, and none is now.", zero=True,
    ),
    Watched(
        "Prompts gained", "support_expand", "share of the prompts",
        "Prompts of which no answer was right at the start, and some is now. Where fewer are won "
        "than lost, training has narrowed what the policy can solve. Rare successes come and go by "
        "luck.", zero=True,
    ),
)  # fmt: skip

FUNCTION = (
    "One of the functions whose weighted sum is the reward. Where one rises alone, it is what is "
    "learnt, wanted or not."
)

# Of the charts that are no curves over the steps.
LAW = (
    "A point is a step, a line the law R = -a exp(H) + b that fits a method's points. It goes down "
    "to exp(entropy) = 1, where it predicts the ceiling, with its 95% interval as a bar, unless "
    "that is above the largest reward."
)
CHANGE = (
    "A point is a probed step, both of the answers that its recipe's entropy_change_share takes. "
    "The prediction is the gradient of the entropy times the step that the optimizer made; on the "
    "line it is exact."
)
TIME = "Mean seconds of a step. What runs on some steps only is spread over all."


def of_rows(rows: Iterable[Row]) -> list[Watched]:
    """Those that some of the steps have."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [*(one for one in WATCHED if one.key in keys), *of_functions(keys)]


def of_evaluation(keys: Iterable[str]) -> list[Watched]:
    """Those that some of the evaluations have."""
    ks = sorted({int(key[5:]) for key in keys if key.startswith("pass@")})
    passes = (
        [
            Watched(f"pass@{k}", f"pass@{k}", "share of the prompts", PASS.format(k=k) + tells)
            for k, tells in {ks[0]: EXPLOITS, ks[-1]: EXPLORES}.items()
        ]
        if ks
        else []
    )
    return [*passes, *(one for one in EVALUATED if one.key in keys), *of_functions(keys)]


def of_functions(keys: Iterable[str]) -> list[Watched]:
    """The rewards of several functions, each before its weight."""
    names = [key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX)]
    return [
        Watched(f"Reward: {name}", f"{PREFIX}{name}", "mean before its weight", FUNCTION)
        for name in names
    ]
