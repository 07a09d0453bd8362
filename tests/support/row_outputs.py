"""What the row ops return, by name: written down once more, for the tests."""

from __future__ import annotations

VALUES = ("logp", "entropy", "lse")
STATISTICS = ("varentropy", "sum_p2", "log_sum_p2", "mean_logit", "entropy_change")
REALS = (*VALUES, *STATISTICS)
EXTRAS = (*STATISTICS, "argmax")
