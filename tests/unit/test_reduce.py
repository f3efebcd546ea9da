"""The ordered reduction: one tree, whatever the number of workers."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tidegate.data.plan import owned_shards
from tidegate.training.reduce import OrderedSum, _combine, _tree_sum, subtrees

SIZE = 64
sizes = st.integers(1, 16).flatmap(lambda shards: st.tuples(st.just(shards), st.integers(1, shards)))


def vectors(shards: int) -> list[Tensor]:
    """Floats of very different sizes and both signs: any other order of addition shows in the last bits."""
    generator = np.random.Generator(np.random.PCG64(shards))
    exponents = generator.uniform(-8, 8, (shards, SIZE))
    return list(torch.from_numpy((generator.choice([-1, 1], (shards, SIZE)) * 10**exponents).astype(np.float32)))


def in_tree(values: list[Tensor]) -> Tensor:
    """The tree by its definition: halves, the smaller one first, each summed by itself."""
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    return in_tree(values[:middle]) + in_tree(values[middle:])


def simulated(values: list[Tensor], workers: int) -> Tensor:
    """All workers one after the other, with a dictionary in place of the all-gather."""
    shards = len(values)
    known = {}
    for worker in range(workers):
        mine = owned_shards(shards, worker, workers)
        asked: list[int] = []

        def vector(shard: int, asked: list[int] = asked) -> Tensor:
            asked.append(shard)
            return values[shard].clone()

        for span in subtrees(mine.start, mine.stop, (0, shards)):
            known[span] = _tree_sum(vector, span)
        assert asked == list(mine)
    return _combine(known, (0, shards))


@given(sizes)
def test_the_subtrees_of_all_workers_tile_the_tree(size: tuple[int, int]) -> None:
    shards, workers = size
    tiles = []
    for worker in range(workers):
        mine = owned_shards(shards, worker, workers)
        spans = subtrees(mine.start, mine.stop, (0, shards))
        assert [shard for span in spans for shard in range(*span)] == list(mine)
        tiles += spans
    assert [shard for span in tiles for shard in range(*span)] == list(range(shards))
    assert set(tiles) <= nodes((0, shards))


def nodes(span: tuple[int, int]) -> set[tuple[int, int]]:
    start, stop = span
    if stop - start == 1:
        return {span}
    middle = (start + stop) // 2
    return {span} | nodes((start, middle)) | nodes((middle, stop))


@given(sizes)
def test_a_range_has_few_subtrees(size: tuple[int, int]) -> None:
    shards, workers = size
    for worker in range(workers):
        mine = owned_shards(shards, worker, workers)
        assert len(subtrees(mine.start, mine.stop, (0, shards))) <= max(1, 2 * shards.bit_length() - 2)


@given(sizes)
def test_the_sum_has_the_same_bits_for_any_number_of_workers(size: tuple[int, int]) -> None:
    shards, workers = size
    values = vectors(shards)
    assert torch.equal(simulated(values, workers), in_tree(values))


@pytest.mark.parametrize("shards", [3, 4, 5, 8, 16])
def test_another_order_would_show(shards: int) -> None:
    values = vectors(shards)
    by_workers = [worker_by_worker(values, workers) for workers in (1, 2, 3)]
    assert len({total.numpy().tobytes() for total in by_workers}) > 1
    assert not torch.equal(by_workers[0], in_tree(values))


def worker_by_worker(values: list[Tensor], workers: int) -> Tensor:
    """What an ordinary all-reduce does: every worker adds up its own from left to right, then the sums are added."""
    parts = [owned_shards(len(values), worker, workers) for worker in range(workers)]
    return left_to_right([left_to_right([values[shard] for shard in part]) for part in parts])


def left_to_right(values: list[Tensor]) -> Tensor:
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total


def test_one_worker_may_reuse_the_memory_of_its_vector() -> None:
    values, memory = vectors(7), torch.empty(SIZE)
    total = OrderedSum(7, SIZE, worker=0, workers=1, device=torch.device("cpu"))
    assert torch.equal(total(lambda shard: memory.copy_(values[shard])), in_tree(values))
    assert torch.equal(total(lambda shard: memory.copy_(values[shard])), in_tree(values))


WORKER = """
import hashlib, json, sys
import torch, torch.distributed as dist
from tidegate.data.plan import owned_shards
from tidegate.training.reduce import OrderedSum
port, worker, workers, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=worker, world_size=workers)
found = {}
for shards in (3, 4, 5, 8, 16):
    values = torch.load(f"{folder}/{shards}.pt", weights_only=True)
    total = OrderedSum(shards, values.shape[1], worker=worker, workers=workers, device=torch.device("cpu"))
    memory, asked = torch.empty(values.shape[1]), []
    def vector(shard):
        asked.append(shard)
        return memory.copy_(values[shard])
    for _ in range(2):
        result = total(vector)
    assert asked == 2 * list(owned_shards(shards, worker, workers)), asked
    found[shards] = hashlib.sha256(result.numpy().tobytes()).hexdigest()
print(json.dumps(found))
dist.destroy_process_group()
"""


def test_real_process_groups_of_one_two_and_three_give_the_bits_of_the_tree(tmp_path: Path) -> None:
    expected = {}
    for shards in (3, 4, 5, 8, 16):
        values = vectors(shards)
        torch.save(torch.stack(values), tmp_path / f"{shards}.pt")
        expected[str(shards)] = hashlib.sha256(in_tree(values).numpy().tobytes()).hexdigest()
    for workers in (1, 2, 3):
        for found in run_workers(workers, tmp_path):
            assert found == expected


def run_workers(workers: int, folder: Path) -> list[dict[str, str]]:
    """What each of some worker processes printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, port, str(worker), str(workers), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for worker in range(workers)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output) for output, _ in outputs]
