import sys
import time

import torch
import torch.distributed as dist
from torch import nn

torch.set_num_threads(1)
BATCH, EPOCHS, ROWS = 128, 5, 10_000


def make(kind):
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
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


dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
g = torch.Generator().manual_seed(1)
x, y = torch.rand(ROWS, 784, generator=g)[rank::world], torch.randint(0, 10, (ROWS,), generator=g)[rank::world]
model = nn.parallel.DistributedDataParallel(make(sys.argv[1]))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(EPOCHS + 1):  # the first warms up
    if epoch <= 1:
        start, rows = time.time(), 0
    order = torch.randperm(len(x))
    for i in range(0, len(x) - BATCH + 1, BATCH):
        pick = order[i : i + BATCH]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
        rows += BATCH * world
if rank == 0:
    print(f"{sys.argv[1]} {rows / (time.time() - start):.0f} samples/s")
