from __future__ import annotations

import pytest
import torch

from logitless.rl.update.advantages import ADVANTAGES, advantages_of

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])


def test_values() -> None:
    # The unbiased deviation of 1, 0, 0, 1 is sqrt(1/3).
    high = 0.5 / (3**-0.5 + 1e-4)
    expected = torch.tensor([high, -high, -high, high, 0, 0, 0, 0])
    torch.testing.assert_close(advantages_of(REWARDS, "group_std"), expected)
    half = torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0])
    torch.testing.assert_close(advantages_of(REWARDS, "group_mean"), half)
    # 1 - mean(0, 0, 1) = 2/3.
    torch.testing.assert_close(advantages_of(REWARDS, "leave_one_out"), half * 4 / 3)


@pytest.mark.parametrize("kind", sorted(ADVANTAGES))
def test_a_group_sums_to_zero_and_equal_rewards_teach_nothing(kind: str) -> None:
    advantages = advantages_of(REWARDS, kind).view(2, 4)
    assert advantages.sum(dim=1).abs().max() < 1e-6
    assert not advantages[1].any()


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"update.advantage must be one of .*, got 'gae'"):
        advantages_of(REWARDS, "gae")
