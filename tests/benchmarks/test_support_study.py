"""The study of support-sparse rows counts and measures what it says, on rows one can see."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.studies import sparse_study, text_model
from benchmarks.studies.sparse_rows import BONUS, KEPT, d_logits, row_facts, study
from logitless import reference


def test_gradient_is_that_of_the_oracle() -> None:
    z, targets, g = torch.randn(9, 200), torch.randint(200, (9,)), torch.randn(9)
    exact, _ = reference.token_stats_backward(
        z.numpy(), targets.numpy(), g_logp=g.numpy(), g_entropy=BONUS
    )
    np.testing.assert_allclose(d_logits(z.log_softmax(-1), targets, g, BONUS), exact, atol=1e-6)


def test_what_is_kept_and_dropped() -> None:
    z = torch.zeros(2, KEPT + 3)
    z[:, :KEPT] = 10.0
    facts = row_facts(z, torch.tensor([0, KEPT + 2]))
    # The second row keeps its target beside the 64 largest.
    assert facts["kept"].sum(1).tolist() == [KEPT, KEPT + 1]
    p = z.softmax(-1)[0, -1]
    torch.testing.assert_close(facts["dropped"], torch.stack([3 * p, 2 * p]).double())


def test_flat_rows_are_not_served_and_peaked_ones_are() -> None:
    hidden, weight = torch.eye(2, 8), torch.randn(500, 8) * 1e-3
    targets = torch.tensor([3, 4])
    flat = study(hidden, weight, targets)
    assert set(flat["served"].values()) == {0.0}
    assert flat["errors"]["0.01 with entropy"]["d_weight"] == 0.0
    weight[3] = 20.0
    peaked = study(hidden, weight, targets)
    assert set(peaked["served"].values()) == {1.0}
    assert 0 < peaked["errors"]["0.01 with entropy"]["d_hidden"] < 1e-2
    assert peaked["entropy"] < 1e-3 < flat["entropy"]
    # The cold row holds less in its tail.
    assert study(hidden, weight, targets, 0.5)["dropped_mass"][0.9] < peaked["dropped_mass"][0.9]


def test_steps_that_are_measured() -> None:
    assert sparse_study.measured_steps(900) == {0, 50, 200, 800, 900}


def test_docstrings_are_all_that_is_read_of_code() -> None:
    source = '"""One."""\n\n\ndef f():\n    """Two."""\n    return "three"\n'
    assert text_model.docstrings(source) == "One.\n\nTwo."
    assert text_model.docstrings("this is not Python") == ""
