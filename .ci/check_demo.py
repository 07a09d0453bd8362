"""Checks what `logitless train short steps=24` left: python .ci/check_demo.py RUN_FOLDER

The margins are well inside what three seeds give (the table in CONTRIBUTING.md), so that they fail
on a broken loss, selection or report and not on a seed or on another machine's rounding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KEYS = {
    "reward_first",
    "reward_last",
    "entropy_first",
    "entropy_last",
    "distinct_right_answers_last",
    "law",
    "selected_tokens",
    "seconds",
    "peak_memory_bytes",
    "head_memory_bytes",
    "full_logits_bytes",
}

folder = Path(sys.argv[1])
summary = json.loads((folder / "summary.json").read_text())
for method in ("grpo", "clip_cov"):
    row = summary[method]
    missing = KEYS - set(row)
    assert not missing, f"{method}: summary.json lacks {sorted(missing)}"
    assert row["reward_last"] > row["reward_first"], f"{method} learned nothing: {row}"
    assert row["head_memory_bytes"] < row["full_logits_bytes"], f"{method}: {row}"
    assert (folder / method / "metrics.jsonl").stat().st_size > 0

grpo, clip_cov = summary["grpo"], summary["clip_cov"]
assert grpo["selected_tokens"] == 0, grpo
assert clip_cov["selected_tokens"] > 0, clip_cov
assert grpo["entropy_last"] < grpo["entropy_first"] - 0.2, f"no collapse to cure: {grpo}"
assert clip_cov["entropy_last"] > grpo["entropy_last"] + 0.1, (
    f"Clip-Cov does not hold entropy: {clip_cov['entropy_last']} against {grpo['entropy_last']}"
)
for method, row in (("grpo", grpo), ("clip_cov", clip_cov)):
    assert row["reward_last"] > 0.65, f"{method}: reward {row['reward_last']}"

report = (folder / "report.html").read_text()
assert "<svg" in report, "the report shows no chart"
print(
    f"short demo: entropy {grpo['entropy_last']:.3f} under GRPO, "
    f"{clip_cov['entropy_last']:.3f} under Clip-Cov"
)
