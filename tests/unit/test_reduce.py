"""The sums over shards and workers: one tree, whatever the number of workers; and the fast one, equal to rounding."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tidegate.data.plan import owned_shards
from tidegate.training.reduce import Combined, OrderedSum, subtrees

CPU = torch.device("cpu")
SIZE = 65
"""The last element is the flag's. No multiple of 2, 3 or 4."""
sizes = st.integers(1, 16).flatmap(lambda shards: st.tuples(st.just(shards), st.integers(1, shards)))


def vectors(shards: int, size: int = SIZE) -> list[Tensor]:
    """Floats of very different sizes and both signs: any other order of addition shows in the last bits."""
    generator = np.random.Generator(np.random.PCG64(shards))
    exponents = generator.uniform(-8, 8, (shards, size))
    values = (generator.choice([-1, 1], (shards, size)) * 10**exponents).astype(np.float32)
    values[:, -1] = 0
    return list(torch.from_numpy(values))


def in_tree(values: list[Tensor]) -> Tensor:
    """The tree by its definition: halves, the smaller one first, each summed by itself."""
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    return in_tree(values[:middle]) + in_tree(values[middle:])


class Simulation:
    """A group of workers in this process: their partial sums meet in a list in place of the network."""

    def __init__(self, shards: int, workers: int) -> None:
        self.shards = shards
        self.memory = [torch.empty(SIZE) for _ in range(workers)]
        self.sums = [OrderedSum(shards, SIZE, worker=w, workers=workers, device=CPU) for w in range(workers)]

    def total(self, values: list[Tensor], flags: list[float]) -> Tensor:
        """What every worker is given; each adds its shards out of the same memory."""
        sent: list[list[Tensor]] = []

        def exchange(mine: list[Tensor], combined: Combined) -> Tensor:
            sent.append([tensor.clone() for tensor in mine])
            return combined(sent) if len(sent) == len(self.sums) else torch.empty(0)

        for worker, (sum_, flag) in enumerate(zip(self.sums, flags, strict=True)):
            memory = self.memory[worker]
            if len(self.sums) > 1:
                sum_._exchange = exchange  # type: ignore[assignment]
            for shard in owned_shards(self.shards, worker, len(self.sums)):
                sum_.add(memory.copy_(values[shard]))
            result = sum_.total(flag)
        return result


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
def test_the_sum_has_the_bits_of_the_tree_for_any_number_of_workers(size: tuple[int, int]) -> None:
    shards, workers = size
    values = vectors(shards)
    total = Simulation(shards, workers).total(values, [0.0] * workers)
    assert torch.equal(total, in_tree(values))


@given(sizes, st.data())
def test_the_flag_is_the_exact_sum_of_the_workers_flags(size: tuple[int, int], data: st.DataObject) -> None:
    shards, workers = size
    flags = data.draw(st.lists(st.integers(0, 3), min_size=workers, max_size=workers))
    total = Simulation(shards, workers).total(vectors(shards), [float(flag) for flag in flags])
    assert float(total[-1]) == sum(flags)


@given(sizes)
def test_batches_do_not_leak_into_one_another(size: tuple[int, int]) -> None:
    shards, workers = size
    group, values = Simulation(shards, workers), vectors(shards)
    group.total([torch.full((SIZE,), 1e9)] * shards, [3.0] * workers)
    for scale in (2.0, 1.0):
        scaled = [scale * value for value in values]
        assert torch.equal(group.total(scaled, [0.0] * workers), in_tree(scaled))


@given(sizes, st.data())
def test_what_was_added_of_a_batch_can_be_discarded(size: tuple[int, int], data: st.DataObject) -> None:
    shards, workers = size
    group, values = Simulation(shards, workers), vectors(shards)
    for worker, sum_ in enumerate(group.sums):
        for _ in range(data.draw(st.integers(0, len(owned_shards(shards, worker, workers)) - 1))):
            sum_.add(torch.full((SIZE,), 1e9))
        sum_.discard()
    assert torch.equal(group.total(values, [0.0] * workers), in_tree(values))


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


def test_memory_is_used_again() -> None:
    shards, places = 16, []
    total = OrderedSum(shards, SIZE, worker=0, workers=1, device=CPU)
    for _ in range(4):
        for value in vectors(shards):
            total.add(value)
        total.total(0.0)
        places.append({tensor.data_ptr() for tensor in total._spare})
    # A left and a right half at most are open on each level of the tree.
    assert len(places[0]) <= shards.bit_length()
    assert all(place == places[0] for place in places)


WORKER = """
import hashlib, json, os, sys
import torch, torch.distributed as dist
from tidegate.data.plan import owned_shards
from tidegate.training.peers import PeerLostError, exchange
from tidegate.training.reduce import FastSum, OrderedSum
worker, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)

def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()

def ordered(values, workers):
    shards, size = values.shape
    total = OrderedSum(shards, size, worker=worker, workers=workers, device=torch.device("cpu"))
    memory = torch.empty(size)
    for scale, flag in ((2.0, 1.0), (1.0, 0.0), (1.0, float(3 * (worker == 0)))):
        for shard in owned_shards(shards, worker, workers):
            total.add(memory.copy_(scale * values[shard]))
        result = total.total(flag)
        yield [digest(result[:-1]), float(result[-1])]

def fast(values, workers):
    total = FastSum(values.shape[1], worker=worker, workers=workers, device=torch.device("cpu"))
    for flag in (1.0, 0.0):
        rows = owned_shards(len(values), worker, workers)
        total.add(values[rows.start : rows.stop].sum(0))
        yield total.total(flag).tolist()

cases, found = torch.load(f"{folder}/cases.pt", weights_only=True), {}
for workers in range(1, 5):
    if worker < workers:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{workers}", rank=worker, world_size=workers)
        for values in cases:
            if len(values) >= workers:
                name = f"{workers} workers, {len(values)} shards of {values.shape[1]}"
                found[name] = [list(ordered(values, workers)), list(fast(values, workers))]
        dist.destroy_process_group()
with open(f"{folder}/{worker}.json", "w") as file:
    json.dump(found, file)

# The last one dies in the middle of a step; what the others raise is what Ray then sees.
for workers in (4, 2):
    if worker < workers:
        dist.init_process_group("gloo", init_method=f"file://{folder}/lost-{workers}", rank=worker, world_size=workers)
        total = OrderedSum(4, 1000, worker=worker, workers=workers, device=torch.device("cpu"))
        for _ in owned_shards(4, worker, workers):
            total.add(torch.ones(1000))
        dist.barrier()
        if worker == workers - 1:
            os._exit(0)
        try:
            with exchange():
                total.total(0.0)
        except PeerLostError:
            print("lost", flush=True)
        dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], list[str]]]:
    """What four processes found in groups of one to four, and what they said of a group that lost one."""
    folder = tmp_path_factory.mktemp("groups")
    torch.save(CASES, folder / "cases.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(worker), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for worker in range(4)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        assert "Warning" not in errors
    found = [json.loads((folder / f"{worker}.json").read_text()) for worker in range(4)]
    return [(results, output.splitlines()) for results, (output, _) in zip(found, outputs, strict=True)]


# A vector shorter than the group is wide, ones that the group does not divide, and one that it does.
CASES = [torch.stack(vectors(shards, size)) for shards in (1, 2, 3, 4, 5, 8, 16) for size in (3, 67, 120)]


def test_real_process_groups_give_the_bits_of_the_tree_and_the_flag(
    groups: list[tuple[dict[str, Any], list[str]]],
) -> None:
    compared = 0
    for worker, (found, _) in enumerate(groups):
        for values in CASES:
            for workers in range(worker + 1, min(4, len(values)) + 1):
                ordered, _ = found[f"{workers} workers, {len(values)} shards of {values.shape[1]}"]
                sums = [in_tree(list(scale * values))[:-1] for scale in (2.0, 1.0, 1.0)]
                digests = [hashlib.sha256(total.numpy().tobytes()).hexdigest() for total in sums]
                assert ordered == [list(pair) for pair in zip(digests, [float(workers), 0.0, 3.0], strict=True)]
                compared += 1
    assert compared == sum(workers for values in CASES for workers in range(1, min(4, len(values)) + 1))


def test_the_fast_sum_is_the_same_to_rounding(groups: list[tuple[dict[str, Any], list[str]]]) -> None:
    for found, _ in groups:
        for name, (_, fast) in found.items():
            (values,) = [case for case in CASES if name.endswith(f" {len(case)} shards of {case.shape[1]}")]
            exact, sizes = values.double().sum(0), values.double().abs().sum(0)
            for total, flag in zip(fast, (float(name.split()[0]), 0.0), strict=True):
                assert ((torch.tensor(total[:-1]).double() - exact[:-1]).abs() <= 1e-6 * sizes[:-1]).all()
                assert total[-1] == flag


def test_a_worker_whose_peer_dies_says_so(groups: list[tuple[dict[str, Any], list[str]]]) -> None:
    assert [lines for _, lines in groups] == [["lost", "lost"], ["lost"], ["lost"], []]
