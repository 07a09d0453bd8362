"""How varied the answers of an evaluation are, and what they have lost and gained since the start.

Pure functions of texts and counts. An answer is its whole text, since a task does not say what of
it is final.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

# Right answers that a prompt has enough of, in the code of B-STaR's authors.
ENOUGH = 8
# Of each prompt how many of its answers are right; None: they could not be scored.
Right = Sequence[int | None]


def answer_entropy(texts: Sequence[str]) -> float:
    """Entropy in nats of the answers to one prompt: -sum p ln p over the distinct ones, p being the
    share of each. At most ln n of n answers, so that few answers cannot tell large entropies apart.

    The answer-level entropy of "The Invisible Leash" (arXiv 2507.14843), there of final answers.
    """
    shares = [count / len(texts) for count in Counter(texts).values()]
    return -math.fsum(p * math.log(p) for p in shares)


def balance(texts: Sequence[str], is_right: Sequence[bool]) -> float:
    """min(r / 8, 1) * r / n for one prompt with n distinct answers, r of them right: 1 where there
    are enough and all are right; few ways to be right and many to be wrong make it small.

    The balance score of B-STaR (arXiv 2412.17256) where nothing is selected: a reward that itself
    says what is right would select the right answers and no others.
    """
    distinct = set(zip(texts, is_right, strict=True))
    right = sum(found for _, found in distinct)
    return min(right / ENOUGH, 1.0) * right / len(distinct)


def support_changes(start: Right, now: Right) -> dict[str, float]:
    """Of the prompts that were scored both times, which share one answer at least got right at the
    start and none does now (`support_shrink`), and the reverse (`support_expand`). Nothing where
    there is no such prompt.

    After the empirical support of "The Invisible Leash", by prompts: one that is solved rarely can
    be in one evaluation and not in the next by luck alone.
    """
    both = [(a, b) for a, b in zip(start, now, strict=True) if a is not None and b is not None]
    if not both:
        return {}
    lost = sum(before > 0 and after == 0 for before, after in both)
    gained = sum(before == 0 and after > 0 for before, after in both)
    return {"support_shrink": lost / len(both), "support_expand": gained / len(both)}
