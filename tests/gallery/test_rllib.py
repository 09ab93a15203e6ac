"""jobs/rllib_cartpole.py: the policy learns, and the one that was saved balances the pole."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.gallery.conftest import Job

PLAY = """
import sys, gymnasium, torch
from ray.rllib.core.rl_module import RLModule
policy = RLModule.from_checkpoint(sys.argv[1])
game = gymnasium.make("CartPole-v1")
total = 0
for seed in range(5):
    seen, ended = game.reset(seed=seed)[0], False
    while not ended:
        action = policy.forward_inference({"obs": torch.tensor(seen)[None]})["action_dist_inputs"].argmax()
        seen, reward, fallen, finished, _ = game.step(int(action))
        total, ended = total + reward, fallen or finished
print(total / 5)
"""


def returns(output: str) -> list[float]:
    """Return the mean return of each iteration."""
    found = re.findall(r"^iteration (\d+): mean return ([\d.]+)$", output, re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [float(mean) for _, mean in found]


def test_the_policy_learns(submit: Job, folder: Path) -> None:
    done = submit("rllib_cartpole")
    assert done.returncode == 0, done.stdout
    learned = returns(done.stdout)
    assert learned[0] < 60 < 150 <= learned[-1] and max(learned[:-1]) < 150
    assert done.stdout.endswith(f"all well: the mean return is {learned[-1]}, the goal is 150\n")
    policy = folder / "outputs/rllib_cartpole/learner_group/learner/rl_module/default_policy"
    played = subprocess.run(
        (sys.executable, "-c", PLAY, policy), cwd=folder, capture_output=True, text=True, check=True
    )
    assert float(played.stdout) >= 150


def test_a_goal_out_of_reach_is_given_up(submit: Job, folder: Path) -> None:
    """The pole falls or the game ends after 500 steps."""
    done = submit("rllib_cartpole", "--reward", "501", "--seconds", "1")
    assert done.returncode == 1
    reached = returns(done.stdout)[-1]
    assert f"wrong: the mean return is {reached} after 1 s, less than 501\n" in done.stdout
    assert not os.path.exists(folder / "outputs" / "rllib_cartpole")
