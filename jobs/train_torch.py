"""Train a network with Ray Train: a small PyTorch model learns to read noisy digits on several workers.

The workers use the cluster's GPUs if it has any, else 2 CPUs. Each epoch ends with a checkpoint. If the job is killed,
the same command resumes from the last one. On a cluster of several nodes, --storage must name a folder that all of them
share, or a bucket. It takes 30 s on 2 cores, and needs `pip install '.[train]'`.

On a cluster:  ray-workload submit jobs/train_torch.py --storage /mnt/shared/digits
Without one:   python jobs/train_torch.py
"""

import argparse
import logging
import os
import sys
import tempfile
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ACCURACY = 0.9  # that the model must reach
NOISE = 0.2
# Ask for the results of an epoch more often than every 2 s, and no early warning of a node's end: each epoch is saved.
SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# The digits 0 to 9, each as 5 rows of 3 pixels.
FONT = "111101101101111 010110010010111 111001111100111 111001111001111 101101111001001".split()
FONT += "111100111001111 111100111101111 111001001001001 111101111101111 111101111001111".split()


def draw_digits(count: int, seed: int) -> TensorDataset:
    """Draw random digits at random places of 8 x 6 pixels with noise, so that there is nothing to download."""
    random = torch.Generator().manual_seed(seed)
    font = torch.tensor([[int(pixel) for pixel in digit] for digit in FONT]).view(10, 5, 3)
    images = torch.randn(count, 1, 8, 6, generator=random) * NOISE
    labels = torch.randint(10, (count,), generator=random)
    places = torch.randint(4, (count, 2), generator=random).tolist()
    for image, label, (row, column) in zip(images, labels, places, strict=True):
        image[0, row : row + 5, column : column + 3] += font[label]
    return TensorDataset(images, labels)


def train_digits(config: dict[str, Any]) -> tuple[list[float], float]:
    """Train in one of the workers. Returns the loss after each epoch and the accuracy at the end."""
    logging.getLogger().setLevel(logging.WARNING)  # else Ray logs what we print a second time
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    model = prepare_model(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses: list[float] = []
    first = ray.train.get_context().get_world_rank() == 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(f"{folder}/state.pt", map_location="cpu")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"]
        if first:
            print(f"resumed from epoch {len(losses)}")

    loader = prepare_data_loader(DataLoader(draw_digits(10_000, seed=0), batch_size=50, shuffle=True))
    device = next(network.parameters()).device
    unseen, answers = (tensor.to(device) for tensor in draw_digits(1_000, seed=1).tensors)
    for epoch in range(len(losses) + 1, config["epochs"] + 1):
        if hasattr(loader.sampler, "set_epoch"):  # with several workers: another order in each epoch
            loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(network(unseen), answers).item())
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if first:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
                torch.save(state, f"{folder}/state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"epoch": epoch, "loss": losses[-1]}, checkpoint)
        if first:
            print(f"epoch {epoch} of {config['epochs']}: loss {losses[-1]:.3f}")
    with torch.no_grad():
        return losses, (network(unseen).argmax(1) == answers).float().mean().item()


def main() -> None:
    """Train, and check that the model has learned."""
    parser = argparse.ArgumentParser(description="Train a model on several workers with Ray Train.")
    parser.add_argument("--epochs", type=int, default=8, help="epochs in total (default: 8)")
    parser.add_argument(
        "--storage",
        default=os.environ.get("RAY_WORKLOAD_OUTPUTS", os.path.abspath("outputs")),
        help="folder that all nodes share, or URL of a bucket, for the checkpoints (default: RAY_WORKLOAD_OUTPUTS)",
    )
    args = parser.parse_args()
    os.environ.update(SETTINGS)
    ray.init()  # connects to the cluster when run as a job, else starts Ray on this machine
    gpus = int(ray.cluster_resources().get("GPU", 0))
    print(f"training on {gpus} GPUs" if gpus else "training on 2 CPUs")
    trainer = TorchTrainer(
        train_digits,
        train_loop_config={"epochs": args.epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=gpus or 2, use_gpu=gpus > 0),
        run_config=ray.train.RunConfig(
            name="train_torch",
            storage_path=args.storage,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=3),  # a lost worker: resume from the last checkpoint
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    result = trainer.fit()
    losses, accuracy = result.return_value
    print(f"the last checkpoint is {result.checkpoint.path}")
    if losses[-1] >= losses[0]:
        sys.exit(f"wrong: the loss did not fall, from {losses[0]:.3f} to {losses[-1]:.3f}")
    if accuracy < ACCURACY:
        sys.exit(f"wrong: the model reads {accuracy:.1%} of new digits, less than {ACCURACY:.0%}")
    print(f"the loss fell from {losses[0]:.3f} to {losses[-1]:.3f}")
    print(f"all well: the model reads {accuracy:.1%} of the digits that it has not seen before")


if __name__ == "__main__":
    main()
