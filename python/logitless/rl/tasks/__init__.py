"""Tasks: where prompts come from, and the reward of an answer. A task is two methods.

    class Shout:
        def prompts(self, rng, n): return [Prompt("say hello loudly:")] * n
        def reward(self, prompt, completion): return float(completion.isupper())

Put `task: {name: "my_module:Shout", options: {...}}` in a recipe; the options are its arguments.
Without a class, `task: {prompts: my.jsonl, reward: "my.py:score"}` is a file of prompts and a
function (prompt_file.py), and `rewards:` are several functions with weights (judges.py).
A task with `solution(rng, prompt) -> str` can also be warmed up on (update/warmup.py).
"""

from __future__ import annotations

from logitless.rl.tasks.base import Prompt, Task, TaskWithSolutions
from logitless.rl.tasks.bundled import BUNDLED
from logitless.rl.tasks.following import Answered, Following, FollowsTraining, Group
from logitless.rl.tasks.judges import following_of
from logitless.rl.tasks.load import TASKS, load_task
from logitless.rl.tasks.prompt_file import PromptFile
from logitless.rl.tasks.reasoning_gym import ReasoningGym
from logitless.rl.tasks.scoring import RewardError, Scores, check_any, join_scores, score
from logitless.rl.tasks.sum_to_n import SumToN
from logitless.rl.tasks.user_code import UserCodeError, of_user

__all__ = [
    "BUNDLED", "TASKS", "Answered", "Following", "FollowsTraining", "Group", "Prompt", "PromptFile",
    "ReasoningGym", "RewardError", "Scores", "SumToN", "Task", "TaskWithSolutions", "UserCodeError",
    "check_any", "following_of", "join_scores", "load_task", "of_user", "score",
]  # fmt: skip
