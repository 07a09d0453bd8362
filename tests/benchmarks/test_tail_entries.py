"""The study of how many entries rows need: its rows, on states that no model made."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.studies import tail_entries as study  # noqa: E402
from benchmarks.studies.real_states import States  # noqa: E402


def states(spread: float) -> States:
    g = torch.Generator().manual_seed(0)
    hidden = spread * torch.randn(24, 16, generator=g)
    weight = torch.randn(1500, 16, generator=g)
    drawn = torch.multinomial((hidden @ weight.T).softmax(-1), 1, generator=g)[:, 0]
    return States(hidden, weight, drawn, temperature=1.0)


def test_more_entries_serve_more_rows_within_the_error_of_a_tail() -> None:
    found = study.study(states(1.5), rounds=1)
    rows = [row for row in found if "peer" not in row]
    assert [row["peer"] for row in found[len(rows) :]] == list(study.peers())
    assert [(row["tail_mass"], row["entries"]) for row in rows] == study.settings()
    for tail in study.TAILS:
        of_tail = [row for row in rows if row["tail_mass"] == tail]
        served = [row["served"] for row in of_tail]
        assert served == sorted(served)
        assert served[0] < served[-1]
        assert all(max(row["errors"]) <= 20 * tail for row in of_tail)
    assert all(row["over_bare"] > 0 for row in found)
    assert len(study.table(found).splitlines()) == 2 + len(found)
