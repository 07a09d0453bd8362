"""Entropy controllers: TRL's own trajectory, a policy that obeys, state that survives."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

import logitless as ll
from tests.support.paths import TESTS

REPO = json.loads((TESTS / "golden" / "entropy_control.json").read_text())["repo"]
MAKERS = [ll.StepController, ll.LogController, ll.RepoController, ll.PIController]
TRL = json.loads((TESTS / "golden" / "trl.json").read_text())


def test_step_controller_is_trls() -> None:
    """Its coefficient after each step, and what it applied: nothing at first or above target."""
    controller = ll.StepController(target=0.95, delta=0.3, value=0.2)
    for step in TRL["adaptive"]:
        assert controller.coefficient == pytest.approx(step["applied"], abs=1e-15)
        controller.update(step["entropy"])
        assert controller.value == pytest.approx(step["after"], abs=1e-15)
    assert {0.0} < {step["applied"] for step in TRL["adaptive"]}


def test_log_controller_brings_entropy_to_its_target() -> None:
    """A policy whose entropy is 0.2 + the bonus: it settles where coefficient is target - 0.2."""
    controller = ll.LogController(target=0.5, coefficient=0.01, rate=0.5)
    for _ in range(400):
        controller.update(0.2 + controller.coefficient)
    assert controller.coefficient == pytest.approx(0.3, rel=1e-6)
    before = controller.coefficient
    controller.update(0.7)
    assert math.log(controller.coefficient / before) == pytest.approx(-0.5 * 0.2)
    controller.high = 0.25
    assert controller.update(0.0) == 0.25


def test_repo_controller_is_skyrls() -> None:
    """Its zeta after each of 81 steps, bit for bit."""
    controller = ll.RepoController(target=0.3)
    assert [controller.update(x) for x in REPO["entropy"]] == REPO["zeta"]
    assert min(REPO["zeta"]) == -0.05 and max(REPO["zeta"]) == 0.05


def test_repo_controller_doubles_halves_and_turns() -> None:
    """The authors' rule, step by step: its whole range down, and back up."""
    controller = ll.RepoController(target=0.3)
    down = [5e-4, 2.5e-4, 1.25e-4, *(-1e-4 * 2.0**k for k in range(9)), -0.05, -0.05]
    up = [-0.05 / 2**k for k in range(1, 9)] + [1e-4 * 2.0**k for k in range(9)] + [0.05, 0.05]
    for entropy, path in ((0.31, down), (0.29, up)):
        for value in path:
            assert controller.update(entropy) == pytest.approx(value, rel=1e-12)
    assert controller.update(0.3) == 0.05
    for entropy, first in ((0.31, -1e-4), (0.29, 1e-4)):
        assert ll.RepoController(0.3, 0.0).update(entropy) == first


def test_repo_controller_brings_entropy_to_its_target() -> None:
    """A policy whose entropy is 0.4 + 3 zeta, and one that needs a zeta below 0: both are at the
    target within what one doubling moves them."""
    for base in (0.2, 0.4):
        controller = ll.RepoController(target=0.3, high=1.0)
        seen = [base + 3.0 * controller.update(base + 3.0 * controller.coefficient)
                for _ in range(200)]  # fmt: skip
        assert all(abs(x - 0.3) <= 0.11 for x in seen[50:])
        assert min(seen[50:]) < 0.3 < max(seen[50:])


def test_pi_controller_by_hand() -> None:
    """The error of now and the sum of those before, within the bounds; the sum goes on."""
    controller = ll.PIController(target=0.1, kp=2.0, ki=0.5, low=-0.3, high=0.6)
    seen = [controller.update(h) for h in (0.2, 0.3, 0.05, 0.9, 0.0, 0.1)]
    expected = [0.2, 0.4 + 0.05, -0.1 + 0.15, 0.6, -0.2 + 0.525, 0.475]
    assert seen == pytest.approx(expected, rel=1e-12)
    assert controller.total == pytest.approx(0.1 + 0.2 - 0.05 + 0.8 - 0.1, rel=1e-12)


def test_pi_controller_brings_entropy_to_its_target() -> None:
    """A policy whose entropy is 0.5 - alpha, too high by itself: the integral leaves no error, a
    proportional controller alone half of it."""
    for ki, error in ((0.02, 0.0), (0.0, 0.1)):
        controller, entropy = ll.PIController(target=0.3, ki=ki), 0.5
        for _ in range(2000):
            entropy += 0.1 * (0.5 - controller.coefficient - entropy)
            controller.update(entropy)
        assert entropy - 0.3 == pytest.approx(error, abs=1e-6)


def test_an_entropy_anchor_keeps_the_first() -> None:
    anchor = ll.EntropyAnchor()
    assert anchor.anchor is None
    assert [anchor.update(x) for x in (0.7, 0.2, 3.0)] == [0.7, 0.7, 0.7]
    resumed = ll.EntropyAnchor()
    resumed.load_state_dict(json.loads(json.dumps(anchor.state_dict())))
    assert resumed.update(5.0) == 0.7
    with pytest.raises(ValueError, match="anchor"):
        resumed.load_state_dict({"anchor": -1.0})
    assert resumed == anchor


@pytest.mark.parametrize("make", MAKERS)
def test_state_survives(make: Any) -> None:
    a, b = make(target=0.4), make(target=9.0)
    a.update(0.1)
    b.load_state_dict(json.loads(json.dumps(a.state_dict())))
    assert a.update(0.3) == b.update(0.3) and a == b
    with pytest.raises(ValueError, match=r"state of .* must have"):
        b.load_state_dict({"target": 0.4})


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ll.StepController(target=-1.0), ["StepController.target", "-1.0"]),
        (lambda: ll.StepController(0.1, value=2.0), ["StepController.value", "[0.0, 1.0]"]),
        (lambda: ll.LogController(0.1, coefficient=0.0), ["LogController.coefficient", "0.0"]),
        (lambda: ll.PIController(0.1, kp=-1.0), ["PIController.kp", "-1.0"]),
        (lambda: ll.PIController(0.1, low=2.0), ["PIController.low", "2.0"]),
        (lambda: ll.RepoController(0.1, 0.1), ["RepoController.coefficient", "[-0.05, 0.05]"]),
        (lambda: ll.RepoController(0.1, low=0.0), ["RepoController.low", "0.0"]),
        (lambda: ll.RepoController(0.1, high=1e-5), ["RepoController.high", "low = 0.0001"]),
        (lambda: ll.LogController(0.1).update(math.nan), ["entropy", "nan"]),
    ],
)
def test_wrong_numbers(make: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        make()
    assert all(word in str(caught.value) for word in words)
