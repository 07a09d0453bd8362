"""Plans on a CPU stay what they were."""

from __future__ import annotations

import json
from typing import Any

from tests.golden import plans


def test_plans_on_a_cpu_are_what_they_were() -> None:
    expected: dict[str, Any] = json.loads(plans.FILE.read_text())
    found = {name: plans.planned(**asked) for name, asked in plans.cases()}
    assert set(found) == set(expected)
    changed = {name: (expected[name], found[name]) for name in found}
    changed = {name: (old, new) for name, (old, new) in changed.items() if old != new}
    assert not changed, f"if they are meant to change: python -m tests.golden.plans; {changed}"
