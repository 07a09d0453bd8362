from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from logitless.rl.report.page import render
from logitless.rl.report.summary import summarize

DETAILS: dict[str, Any] = {
    "complete": True,
    "comparison": None,
    "max_logp_gap": 1e-6,
    "evaluations": {},
    "spread": {},
    "support_rows": None,
    "recipe": {"update": {"tail_mass": 0.0}, "notes": [], "seeds": []},
}


def row(step: int) -> dict[str, Any]:
    return {
        "step": step, "reward": 0.1 * step, "entropy": 2.0 - 0.1 * step, "seconds": 1.0,
        "distinct_right_answers": 2.0, "selected_tokens": 3, "peak_memory_bytes": 10,
        "full_logits_bytes": 20,
    }  # fmt: skip


def test_text_of_a_recipe_is_no_markup(tmp_path: Path) -> None:
    recipe = DETAILS["recipe"] | {"notes": ["<script>alert('a')</script> {{ 1 + 1 }}"]}
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    runs = {"<method>": {0: [row(step) for step in range(6)]}}
    page = render(summarize(runs, {}), DETAILS | {"recipe": recipe}, {"a < 'b'": picture}, {})
    assert "<script>" not in page and "<method>" not in page
    assert "&lt;method&gt;" in page
    # Once in the list of notes, once in the recipe at the end.
    assert page.count("&lt;script&gt;") == 2
    assert page.count("{{ 1 + 1 }}") == 2
    assert 'alt="a &lt; &#39;b&#39;" src="data:image/png;base64,cG5n"' in page


@pytest.mark.parametrize("complete", [True, False])
def test_a_part_without_numbers_is_left_out(complete: bool) -> None:
    page = render({}, DETAILS | {"complete": complete, "max_logp_gap": None}, {}, {})
    assert ("stopped before its end" in page) != complete
    assert "full logits</h2>" not in page
    assert "<img" not in page
    assert "No step was finished." in page


def test_answers_are_shown_token_by_token() -> None:
    answer = {
        "step": 4, "reward": 0.25, "prompt": "what & why", "completion": "",
        "pieces": [["<b>", 0.0, -0.1], ["x", 1.25, -2.0], ["y", 9.0, -3.0]],
    }  # fmt: skip
    chat = answer | {"prompt": [{"role": "user", "content": "hello"}], "pieces": []}
    page = render({}, DETAILS, {}, {"grpo": [answer, chat]})
    assert "what &amp; why" in page and "hello" in page
    assert '<span style="--heat: 0.00" title="entropy 0.0, log-prob -0.1">&lt;b&gt;</span>' in page
    assert '--heat: 0.50"' in page and '--heat: 1.00"' in page
    assert "Answers</h2>" not in render({}, DETAILS, {}, {})
