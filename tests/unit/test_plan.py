"""The plan: every row exactly once an epoch, a pure function of its arguments, and the same in every release."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.data.plan import Plan, owned_shards
from tidegate.data.random import permutation


@dataclass(frozen=True)
class Drawn:
    """Lengths of the rows of each file, drawn from a seed."""

    rows: tuple[int, ...]
    seed: int

    def of_file(self, file: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self.seed, file)).integers(1, 30, self.rows[file])


def planned(rows_per_file: tuple[int, ...], length_seed: int | None, **options: int) -> Plan:
    lengths = Drawn(rows_per_file, length_seed) if length_seed is not None else None
    return Plan(rows_per_file, lengths=lengths, **options)


plans = st.builds(
    planned,
    rows_per_file=st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple),
    length_seed=st.one_of(st.none(), st.integers(0, 9)),
    seed=st.integers(0, 2**63 - 1),
    global_batch=st.integers(1, 200),
    shards=st.integers(1, 9),
    window=st.integers(1, 5),
)


def shards_of(plan: Plan, step: int) -> list[list[int]]:
    return [plan.shard_rows(step, shard).tolist() for shard in range(plan.shards)]


def batch_of(plan: Plan, step: int) -> list[int]:
    return [row for shard in shards_of(plan, step) for row in shard]


def epoch_of(plan: Plan, epoch: int) -> list[int]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [row for step in steps for row in batch_of(plan, step)]


@given(plan=plans, epoch=st.integers(0, 1000))
@settings(max_examples=1000, deadline=None)
def test_every_row_counts_exactly_once_an_epoch(plan: Plan, epoch: int) -> None:
    assert sorted(epoch_of(plan, epoch)) == list(range(plan.num_rows))


@given(plan=plans, place=st.integers(0, 10_000))
@settings(max_examples=1000, deadline=None)
def test_the_shards_of_a_step_divide_its_batch_evenly(plan: Plan, place: int) -> None:
    sizes = [len(rows) for rows in shards_of(plan, place)]
    assert sum(sizes) == plan.batch_rows(place) > 0
    assert max(sizes) - min(sizes) <= 1
    last = place % plan.steps_per_epoch == plan.steps_per_epoch - 1
    assert plan.batch_rows(place) == plan.global_batch or last


@given(plan=plans, shards=st.integers(1, 9), place=st.integers(0, 10_000))
@settings(max_examples=500, deadline=None)
def test_the_rows_of_a_batch_do_not_depend_on_the_shards(plan: Plan, shards: int, place: int) -> None:
    other = replace(plan, shards=shards)
    assert batch_of(plan, place) == batch_of(other, place)


@given(plan=plans, order=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_rows_depend_on_nothing_but_the_arguments(plan: Plan, order: random.Random) -> None:
    calls = [(step, shard) for step in range(2 * plan.steps_per_epoch) for shard in range(plan.shards)][:60]
    expected = {call: plan.shard_rows(*call).tolist() for call in calls}
    order.shuffle(calls)
    again = replace(plan)
    assert {call: again.shard_rows(*call).tolist() for call in calls} == expected


@given(plan=plans, step=st.integers(0, 10_000), data=st.data())
@settings(max_examples=500, deadline=None)
def test_contiguous_shards_together_are_each_of_them_in_turn(plan: Plan, step: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, plan.shards))
    shards = range(first, data.draw(st.integers(first, plan.shards)))
    rows, cuts = plan.rows(step, shards)
    assert len(cuts) == len(shards) + 1
    assert (cuts[0], cuts[-1], rows.dtype) == (0, len(rows), np.int64)
    for place, shard in enumerate(shards):
        assert rows[cuts[place] : cuts[place + 1]].tolist() == plan.shard_rows(step, shard).tolist()


@given(plan=plans, epoch=st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_windows_name_the_files_that_rows_come_from(plan: Plan, epoch: int) -> None:
    window, windows = (epoch, 0), []
    while window[0] == epoch:
        windows.append(window)
        window = plan.window_after(window)
    assert window == (epoch + 1, 0)
    assert all(plan.window_files(window) for window in windows)
    files = [file for window in windows for file in plan.window_files(window)]
    assert sorted(files) == list(range(len(plan.rows_per_file)))
    offsets = np.concatenate([[0], np.cumsum(plan.rows_per_file)])
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        file = int(np.searchsorted(offsets, batch_of(plan, step)[0], "right")) - 1
        assert file in plan.window_files(plan.window_of(step))


@given(plan=plans)
@settings(max_examples=500, deadline=None)
def test_rows_mix_only_within_a_window_of_files(plan: Plan) -> None:
    offsets = np.concatenate([[0], np.cumsum(plan.rows_per_file)])
    files = np.searchsorted(offsets, epoch_of(plan, 0), "right") - 1
    seen: list[set[int]] = []
    while len(files):
        # The files of a window come together and in full, before any row of the next one.
        window = set(files[: sum(plan.rows_per_file[file] for file in set(files[:1]))].tolist())
        while True:
            rows = sum(plan.rows_per_file[file] for file in window)
            grown = set(files[:rows].tolist())
            if grown == window:
                break
            window = grown
        seen.append(window)
        files = files[rows:]
    assert all(len(window) <= plan.window for window in seen)
    assert sorted(file for window in seen for file in window) == list(range(len(plan.rows_per_file)))


@pytest.mark.parametrize("window", [1, 3, 8])
def test_epochs_and_seeds_differ(window: int) -> None:
    plan = Plan((50, 50, 50, 50), seed=3, global_batch=32, shards=4, window=window)
    orders = [tuple(epoch_of(plan, epoch)) for epoch in range(20)]
    orders += [tuple(epoch_of(Plan(plan.rows_per_file, seed, 32, 4, window), 0)) for seed in (4, 5, 2**62)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(200)) not in orders


def test_rows_are_numbered_beyond_what_small_numbers_hold() -> None:
    """Rows are kept in the smallest type that holds them all; every size gives the same order, moved."""
    for rows in (255, 256, 65_535, 65_536, 2**32):
        plan = Plan((rows, 10), seed=3, global_batch=10, shards=1, window=1)
        # The second file's window alone is asked for, wherever it comes; the large one would take gigabytes.
        epoch = next(epoch for epoch in range(99) if plan.window_files((epoch, 0)) == [1])
        found = plan.shard_rows(epoch * plan.steps_per_epoch, 0)
        assert sorted((found - rows).tolist()) == list(range(10))


def test_epochs_shuffle_well() -> None:
    plan = Plan((400, 400, 200), seed=1, global_batch=100, shards=2)
    places = np.mean([np.argsort(epoch_of(plan, epoch)) for epoch in range(200)], axis=0)
    # The mean place of each row over 200 epochs: 499.5 with a standard error of 20.4.
    assert np.abs(places - 499.5).max() < 5 * 20.4


def test_a_batch_of_all_rows_is_one_step_an_epoch() -> None:
    plan = Plan((7, 5), seed=0, global_batch=12, shards=5)
    assert plan.steps_per_epoch == 1
    assert [plan.epoch_of(step) for step in range(3)] == [0, 1, 2]
    assert [len(rows) for rows in shards_of(plan, 2)] == [2, 2, 3, 2, 3]
    assert sorted(batch_of(plan, 2)) == list(range(12))


def test_more_shards_than_rows_leaves_shards_empty() -> None:
    plan = Plan((3,), seed=0, global_batch=2, shards=4)
    assert [len(rows) for rows in shards_of(plan, 0)] == [0, 1, 0, 1]
    assert [len(rows) for rows in shards_of(plan, 1)] == [0, 0, 0, 1]
    assert all(plan.shard_rows(1, shard).dtype == np.int64 for shard in range(4))


def test_the_order_never_changes_between_releases() -> None:
    """These numbers stand for the trained models of everybody: a change here changes them all."""
    assert permutation(8, key=(7, 3), stream=5).tolist() == GOLDEN_PERMUTATION
    plan = Plan((5, 4, 3), seed=7, global_batch=5, shards=2, window=2)
    assert [shards_of(plan, step) for step in (0, 2, 3)] == GOLDEN_SHARDS
    large = Plan((1000, 1258, 77), seed=2**63 - 1, global_batch=64, shards=4)
    rows = np.asarray([*epoch_of(large, 0), *epoch_of(large, 29)], "<i8")
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == GOLDEN_DIGEST


GOLDEN_PERMUTATION = [4, 1, 7, 5, 2, 0, 6, 3]
GOLDEN_SHARDS = [[[4, 0], [6, 2, 8]], [[10], [9]], [[3, 1], [10, 2, 9]]]
GOLDEN_DIGEST = "c328f5121df5922f"


@given(shards=st.integers(1, 500), workers=st.integers(1, 500))
@settings(max_examples=2000, deadline=None)
def test_owned_shards_are_contiguous_ranges_that_cover_all(shards: int, workers: int) -> None:
    ranges = [owned_shards(shards, worker, workers) for worker in range(workers)]
    assert [shard for owned in ranges for shard in owned] == list(range(shards))
    sizes = [len(owned) for owned in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(count=st.integers(0, 500), seed=st.integers(0, 2**63 - 1), stream=st.integers(0, 2**64 - 1))
@settings(max_examples=500, deadline=None)
def test_a_permutation_is_one(count: int, seed: int, stream: int) -> None:
    found = permutation(count, key=(seed, 1), stream=stream)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(count))
    assert found.tolist() == permutation(count, key=(seed, 1), stream=stream).tolist()


def test_streams_and_keys_do_not_overlap() -> None:
    streams = [tuple(permutation(20, key=(7, e), stream=s).tolist()) for e in range(4) for s in (0, 1, 2, 2**63)]
    streams += [tuple(permutation(20, key=(s, 0), stream=0).tolist()) for s in (0, 1, 2**40, 2**63 - 1)]
    assert len(set(streams)) == len(streams)


@given(
    batch=st.integers(1, 40),
    rows=st.lists(st.integers(1, 200), min_size=1, max_size=6).map(tuple),
    window=st.integers(1, 3),
    epoch=st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_lengths_change_the_order_within_a_window_alone(
    batch: int, rows: tuple[int, ...], window: int, epoch: int
) -> None:
    plain = Plan(rows, 3, batch, 2, window)
    grouped = replace(plain, lengths=Drawn(rows, 1))
    one, other = epoch_of(plain, epoch), epoch_of(grouped, epoch)
    start = 0
    for number in range(-(-len(rows) // window)):
        end = start + sum(rows[file] for file in plain.window_files((epoch, number)))
        assert sorted(one[start:end]) == sorted(other[start:end])
        start = end


def test_the_rows_of_a_batch_are_about_as_long_as_each_other() -> None:
    rows = (1000, 1500)
    lengths = Drawn(rows, 1)
    plan = Plan(rows, seed=3, global_batch=50, shards=2, lengths=lengths)
    known = np.concatenate([lengths.of_file(file) for file in range(2)])
    batches = [batch_of(plan, step) for step in range(plan.steps_per_epoch)]
    spread = [np.ptp(known[batch]) for batch in batches]
    assert np.mean(spread) < 5
    assert np.mean([np.ptp(known[batch_of(replace(plan, lengths=None), step)]) for step in range(50)]) > 25
    # And yet no batch follows from the one before.
    means = [float(known[batch].mean()) for batch in batches]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    assert batches[0] != batch_of(plan, plan.steps_per_epoch)
