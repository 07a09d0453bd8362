"""The page of a report: what it shows, and that text of a user is no markup."""

from __future__ import annotations

import json
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.harness.browser import browser
from logitless.rl.report import page, watch
from logitless.rl.report.page import render
from logitless.rl.report.summary import rewards_of, summarize
from logitless.rl.report.text import reward_scale, table

DETAILS: dict[str, Any] = {
    "complete": True,
    "comparison": None,
    "max_logp_gap": 1e-6,
    "evaluations": {},
    "rewards": None,
    "spread": {},
    "support_rows": None,
    "recipe": {"task": {"right": 1.0}, "update": {"tail_mass": 0.0}, "notes": [], "seeds": []},
}
# A name that is markup, and one that leaves an attribute.
NAMES = ("<b>&'method", 'quote" onload="alert(1)')


def row(step: int, **more: float) -> dict[str, Any]:
    return {
        "step": step, "reward": 0.1 * step, "entropy": 2.0 - 0.1 * step, "seconds": 1.0,
        "distinct_right_answers": 2.0, "selected_tokens": 3, "peak_memory_bytes": 10,
        "full_logits_bytes": 20, "seconds/optimizer": 0.25, **more,
    }  # fmt: skip


def rows(count: int = 6) -> list[dict[str, Any]]:
    return [row(step) for step in range(count)]


def page_of(runs: dict[str, Any], **details: Any) -> str:
    return render(summarize(runs, {}), DETAILS | details, runs, {})


def charts_of(html: str) -> list[ElementTree.Element]:
    """Each is valid XML by itself."""
    return [ElementTree.fromstring(x) for x in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def markup_of(html: str) -> tuple[list[str], set[str]]:
    """The names of a page's elements, and of their attributes."""
    tags: list[str] = []
    attributes: set[str] = set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            attributes.update(name for name, _ in attrs)

    Parser().feed(html)
    return tags, attributes


def test_text_of_a_user_is_no_markup() -> None:
    recipe = DETAILS["recipe"] | {"notes": ["<script>alert('a')</script> {{ 1 + 1 }}"]}
    html = page_of({name: {0: rows()} for name in NAMES}, recipe=recipe)
    tags, attributes = markup_of(html)
    assert tags.count("script") == 1 and "b" not in tags and "onload" not in attributes
    # Once in the list of notes, once in the recipe at the end.
    assert html.count("&lt;script&gt;") == 2
    assert html.count("{{ 1 + 1 }}") == 2
    names = {g.get("data-name") for svg in charts_of(html) for g in svg.iter("g")}
    assert names == set(NAMES)


def test_a_page_needs_nothing_else() -> None:
    html = page_of({"grpo": {0: rows()}})
    assert "http" not in html and "@import" not in html and "url(" not in html
    assert not re.search(r"<(img|link|iframe|script [^>]*src)", html)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html


def test_charts_have_the_numbers_of_the_run() -> None:
    html = page_of({"grpo": {0: rows(3)}, "kl_cov": {0: rows(6)}})
    reward = next(svg for svg in charts_of(html) if svg.get("aria-label") == "Reward")
    lines = [g for g in reward.iter("g") if g.get("class", "").startswith("line ")]
    assert [g.get("data-name") for g in lines] == ["grpo", "kl_cov"]
    assert [g.get("class") for g in lines] == ["line s0", "line s1"]
    assert [g.get("data-x") for g in lines] == ["1 2 3", "1 2 3 4 5 6"]
    # means of the last five steps
    assert lines[0].get("data-y") == "0 0.05 0.1"
    assert [len(p.get("points", "").split()) for p in lines[1].iter("polyline")] == [6, 6]
    assert html.count('<button type="button"') == 2


def test_metrics_are_explained_that_the_run_has() -> None:
    assert [one.key for one in watch.of_rows(rows())] == [
        "reward", "entropy", "distinct_right_answers",
    ]  # fmt: skip
    html = page_of({"grpo": {0: [row(i, grad_norm=1.0 + i) for i in range(3)]}})
    assert "Which metrics to watch</h2>" in html
    assert "Gradient norm</h3>" in html and "A spike is one odd batch" in html
    assert "Truncation" not in html and "Evaluation</h2>" not in html
    # one method alone has it, and in some steps
    some = {
        "a": {0: rows()},
        "b": {0: [row(0), row(1) | {"response_length/clip_ratio": 0.5}, row(2)]},
    }
    truncation = [svg for svg in charts_of(page_of(some)) if svg.get("aria-label") == "Truncation"]
    assert [g.get("data-name") for g in truncation[0].iter("g")] == ["b"]


def test_evaluations_are_drawn() -> None:
    evaluated = [{"step": 4 * i, "pass@1": 0.25, "pass@8": 0.5 + 0.1 * i} for i in range(2)]
    full = [one | {"greedy_right": 0.0, "right": 0.0, "entropy": 1.0} for one in evaluated]
    full = [one | {"distinct_right_answers": 1.0} for one in full]
    html = page_of({"grpo": {0: rows()}}, evaluations={"grpo": full, "later": []})
    found = {svg.get("aria-label"): svg for svg in charts_of(html)}
    (group,) = found["pass@8"].iter("g")
    assert group.get("data-x") == "0 4" and group.get("data-y") == "0.5 0.6"
    assert "pass@1" in found


@pytest.mark.parametrize("complete", [True, False])
def test_a_part_without_numbers_is_left_out(complete: bool) -> None:
    html = render({}, DETAILS | {"complete": complete, "max_logp_gap": None}, {"grpo": {0: []}}, {})
    assert ("has not come to its end" in html) != complete
    assert "full logits</h2>" not in html
    assert "<svg" not in html and "<button" not in html
    assert "No step was finished." in html


def test_answers_are_shown_token_by_token() -> None:
    answer = {
        "step": 4, "reward": 0.25, "prompt": "what & why", "completion": "",
        "pieces": [["<b>", 0.0, -0.1], ["x", 1.25, -2.0], ["y", 9.0, -3.0]],
    }  # fmt: skip
    selected = answer | {"pieces": [["z", 1.25, -2.0, True]]}
    chat = answer | {"prompt": [{"role": "user", "content": "hello"}], "pieces": []}
    html = render({}, DETAILS, {}, {"grpo": [answer, chat]})
    assert "what &amp; why" in html and "hello" in html
    assert '<span style="--heat: 0.00" title="entropy 0.0, log-prob -0.1">&lt;b&gt;</span>' in html
    assert 'class="selected"' not in html and "A frame is around" not in html
    marked = render({}, DETAILS, {}, {"grpo": [answer, selected]})
    assert (
        '<span class="selected" style="--heat: 0.50" title="entropy 1.25, log-prob -2.0, selected">'
        "z</span>"
        in marked
        and "A frame is around" in marked
    )
    assert '--heat: 0.50"' in html and '--heat: 1.00"' in html
    assert "Answers</h2>" not in render({}, DETAILS, {}, {})


def test_the_scale_of_rewards() -> None:
    zero_or_one = {"zero_or_one": True, "least": 0.0, "largest": 1.0}
    assert rewards_of([0.0, 1.0, 0.0]) == rewards_of([0.0]) == zero_or_one
    graded = {"zero_or_one": False, "least": -1.0, "largest": 3.0}
    assert rewards_of([1.0, -1.0, 3.0]) == graded
    assert rewards_of([0.25])["largest"] == 0.25 and rewards_of([]) is None
    assert reward_scale(zero_or_one, 1.0).startswith(
        "Rewards are 0 or 1, so that their mean is the share of right answers."
    )
    # a reward of 1 is not right, or one of 0 is
    assert "share" not in reward_scale(zero_or_one, 2.0) + reward_scale(zero_or_one, 0.0)
    assert "-1 to 3, and one is right from 2 on" in reward_scale(graded, 2.0)
    assert "share of right" not in reward_scale(graded, 2.0)


def test_a_ceiling_above_the_largest_reward_is_left_out() -> None:
    def of(top: float) -> dict[int, Any]:
        """R = top - 0.1 exp(H): a ceiling of top - 0.1."""
        steps = [2.0 - 0.25 * i for i in range(7)]
        return {0: [row(i) | {"entropy": h, "reward": top - 0.1 * math.exp(h)} for i, h in
                    enumerate(steps)]}  # fmt: skip

    runs = {"within": of(1.0), "above": of(1.3)}
    summary = summarize(runs, {}, largest=1.0)
    assert summary["within"]["law"]["ceiling"] == pytest.approx(0.9)
    assert summary["above"]["law"]["ceiling"] is summary["above"]["law"]["interval"] is None
    assert summary["above"]["law"]["b"] == pytest.approx(1.3)
    assert [line[4] for line in table(summary)] == ["ceiling b - a", "0.90", "-"]
    assert summarize(runs, {}, largest=1.5)["above"]["law"]["ceiling"] == pytest.approx(1.2)
    html = render(summary, DETAILS | {"rewards": rewards_of([0.0, 1.0])}, runs, {})
    law = next(x for x in charts_of(html) if x.get("aria-label") == "Reward against exp(entropy)")
    kinds = [(g.get("data-name"), g.get("class", "").split()[0]) for g in law.iter("g")]
    assert kinds == [
        ("within", "points"), ("within", "fit"), ("within", "bar"),
        ("above", "points"), ("above", "fit"),
    ]  # fmt: skip
    assert "A ceiling above 1 is left out." in html and "cannot exceed" not in html


BROWSER = browser() or ""
MEASURE = """<script>
const { scrollWidth, clientWidth } = document.documentElement;
document.title = [scrollWidth, clientWidth, innerWidth].join(" ");
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
def test_nothing_overflows_on_a_telephone(tmp_path: Path) -> None:
    long = "a_method_with_a_name_that_is_much_too_long_for_a_narrow_screen_of_a_telephone"
    runs = {name: {0: [row(i, grad_norm=1.0) for i in range(9)]} for name in ("grpo", long)}
    pieces = [["word" * 30, 1.0, -1.0]] * 9
    answer = {"step": 0, "reward": 1.0, "prompt": "p" * 300, "completion": "", "pieces": pieces}
    details = DETAILS | {"recipe": DETAILS["recipe"] | {"notes": ["n" * 300]}}
    html = render(summarize(runs, {}), details, runs, {long: [answer]})
    # a headless window is no narrower than 500: the page is looked at through a frame of 400
    (tmp_path / "page.html").write_text(html.replace("</body>", MEASURE), "utf-8")
    (tmp_path / "frame.html").write_text(
        '<iframe src="page.html" width="400" height="900" style="border:0" onload="'
        'document.title = contentDocument.title"></iframe>'
    )
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
         (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout + done.stderr
    width, room, window = map(int, found.groups())
    # a scroll bar of the page takes some of its room
    assert width <= room <= window == 400


def test_files_of_a_report(tmp_path: Path) -> None:
    runs = {"grpo": {0: rows()}}
    path = page.write(tmp_path, summarize(runs, {}), DETAILS, runs, {})
    assert path == tmp_path / "report.html"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["report.html", "run.json", "summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["grpo"]["seconds"] == 6.0
