"""Ray Train's own elastic training of the CNN of torchrun_ddp.py, resized 1 -> 2 -> 1 ... by what others claim.

A claim on the cluster's CPUs that goes before Ray Train's leaves it 1 worker or 2; Ray's policy sees that and starts
the workers anew from the newest checkpoint. It looks at its room every second and at its workers every 0.2 s (Ray's
defaults are 60 s and 2 s), and has a checkpoint every `--checkpoint-steps`. The asks are spread evenly over the steps
between two checkpoints. Joins the cluster of RAY_ADDRESS. Prints a JSON line for each resize; times are in seconds from
the ask.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

BATCH, ROWS = 256, 10_000
STEPS_PER_EPOCH = ROWS // BATCH
AT_MOST_S = 300


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def train_loop(config):
    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(ROWS, 784, generator=g), torch.randint(0, 10, (ROWS,), generator=g)
    model, done = make(), 0
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            kept = torch.load(Path(folder, "state.pt"), weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        done = kept["done"]
    parallel = ray.train.torch.prepare_model(model)

    def note(what):
        if rank == 0:
            with open(config["log"], "a") as log:
                log.write(json.dumps({"what": what, "at": time.time(), "done": done, "world": world}) + "\n")

    note("started")
    while True:
        epoch, place = divmod(done, STEPS_PER_EPOCH)
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
        for start in range(place * BATCH, STEPS_PER_EPOCH * BATCH, BATCH):
            pick = order[start : start + BATCH][rank::world]
            optimizer.zero_grad()
            nn.functional.cross_entropy(parallel(x[pick]), y[pick]).backward()
            optimizer.step()
            done += 1
            note("step")
            if done % config["checkpoint_steps"] == 0:
                with tempfile.TemporaryDirectory() as folder:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
                    if rank == 0:
                        torch.save(state, Path(folder, "state.pt"))
                    kept = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
                    ray.train.report({"done": done}, checkpoint=kept)
                note("kept")
                over = torch.tensor(float(Path(config["stop"]).exists()))
                dist.all_reduce(over)
                if over:
                    return


class Story:
    """What the first rank wrote into its log, in order."""

    def __init__(self, path, thread):
        self.path, self.thread, self.place = path, thread, 0
        self.last_step, self.highest = None, 0

    def until(self, wanted):
        """The next event that is wanted."""
        deadline = time.monotonic() + AT_MOST_S
        while time.monotonic() < deadline and self.thread.is_alive():
            for event in self.next_events():
                if event["what"] == "step":
                    self.last_step, self.highest = event, max(self.highest, event["done"])
                if wanted(event):
                    return event
            time.sleep(0.05)
        raise RuntimeError("the run ended" if not self.thread.is_alive() else f"nothing came for {AT_MOST_S} s")

    def next_events(self):
        with open(self.path, "rb") as file:
            file.seek(self.place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.place += len(line)
                yield json.loads(line)


def leave(workers):
    """Claim all CPUs of the cluster but those of so many workers, before Ray Train."""
    others = int(ray.cluster_resources()["CPU"]) - workers
    coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    claim = coordinator.request_resources.remote(
        requester_id="others",
        resources=[{"CPU": 1}] * others,
        expire_after_s=1e6,
        priority=SimpleNamespace(value=100),
    )
    ray.get(claim)


def resize(story, size, steps_after_checkpoint):
    kept = story.until(lambda event: event["what"] == "kept")
    ask_at = kept["done"] + steps_after_checkpoint
    story.until(lambda event: event["what"] == "step" and event["done"] >= ask_at)
    asked = time.time()
    leave(size)
    started = story.until(lambda event: event["what"] == "started")
    assert started["world"] == size, started
    old, highest = story.last_step, story.highest
    first = story.until(lambda event: event["what"] == "step")
    new = first if first["done"] > highest else story.until(lambda e: e["what"] == "step" and e["done"] > highest)
    return {
        "size": size,
        "old_last_step": old["at"] - asked,
        "started": started["at"] - asked,
        "first_step": first["at"] - asked,
        "first_new_step": new["at"] - asked,
        "steps_twice": highest - started["done"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resizes", type=int, default=5, help="of each kind")
    parser.add_argument("--checkpoint-steps", type=int, default=200)
    options = parser.parse_args()
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        log, stop = Path(folder, "log"), Path(folder, "stop")
        trainer = ray.train.torch.TorchTrainer(
            train_loop,
            train_loop_config={"log": str(log), "stop": str(stop), "checkpoint_steps": options.checkpoint_steps},
            scaling_config=ray.train.ScalingConfig(num_workers=(1, 2), elastic_resize_monitor_interval_s=1.0),
            run_config=ray.train.RunConfig(name="elastic", storage_path=folder),
        )
        log.touch()
        thread = threading.Thread(target=trainer.fit, daemon=True)
        thread.start()
        story = Story(log, thread)
        resize(story, 1, 0)  # warms up
        for number in range(options.resizes):
            after = int((number + 0.5) / options.resizes * options.checkpoint_steps)
            for size in (2, 1):
                print(json.dumps(resize(story, size, after)), flush=True)
        stop.touch()
        thread.join(AT_MOST_S)
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
