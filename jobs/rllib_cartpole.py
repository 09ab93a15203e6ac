"""Learn to balance a pole with RLlib: PPO trains a policy for CartPole until its mean return is high enough.

One process learns, others play. It takes 30 s on 2 cores, and needs `pip install '.[rllib]'`.

On a cluster:  ray-workload submit jobs/rllib_cartpole.py --env-runners 8 --reward 450
Without one:   python jobs/rllib_cartpole.py
"""

import argparse
import logging
import os
import sys
import time

import ray
from ray.rllib.algorithms.ppo import PPOConfig


def main() -> None:
    """Train until the mean return reaches the goal, and save the policy."""
    parser = argparse.ArgumentParser(description="Train a policy for CartPole with RLlib.")
    parser.add_argument("--reward", type=float, default=150, help="mean return to reach, up to 500 (default: 150)")
    parser.add_argument("--seconds", type=float, default=300, help="give up after this time (default: 300)")
    parser.add_argument("--env-runners", type=int, default=1, help="processes that play, each on a CPU (default: 1)")
    args = parser.parse_args()
    outputs = os.environ.get("RAY_WORKLOAD_OUTPUTS", os.path.abspath("outputs"))
    for name in "ray.rllib", "ray.tune", "ray._common.deprecation":  # they warn about RLlib itself
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init()  # connects to the cluster when run as a job, else starts Ray on this machine
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=args.env_runners, num_envs_per_env_runner=8)
        .training(lr=1e-3, train_batch_size_per_learner=2_000, minibatch_size=250, num_epochs=10)
        .debugging(log_level="ERROR", seed=0)
    )
    algorithm = config.build_algo()
    deadline = time.monotonic() + args.seconds
    reward = 0.0
    while reward < args.reward:
        if time.monotonic() > deadline:
            sys.exit(f"wrong: the mean return is {reward:.1f} after {args.seconds:g} s, less than {args.reward:g}")
        result = algorithm.train()
        reward = result["env_runners"]["episode_return_mean"]
        print(f"iteration {result['training_iteration']}: mean return {reward:.1f}")
    print(f"the policy is saved in {algorithm.save_to_path(f'{outputs}/rllib_cartpole')}")
    algorithm.stop()
    print(f"all well: the mean return is {reward:.1f}, the goal is {args.reward:g}")


if __name__ == "__main__":
    main()
