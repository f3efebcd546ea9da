"""The feed's arithmetic: which unit holds what, who gets it, and what happens when another arrives. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris

from tidegate.data.feed import MAX_STEPS_PER_UNIT, NO_SHARD, UNIT_BYTES, Feed, UnitReader, Units, steps_per_unit
from tidegate.data.plan import Plan, owned_shards
from tidegate.data.prepared import ROW, TARGET, Prepared
from tidegate.errors import FeedError
from tidegate.spec.run import Spec
from tidegate.transforms.augment import RowWork
from tidegate.transforms.base import Array


@st.composite
def some_units(draw: st.DrawFn) -> Units:
    shards = draw(st.integers(1, 9))
    rows = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=5)))
    plan = Plan(rows, draw(st.integers(0, 9)), draw(st.integers(1, sum(rows))), shards, window=2)
    start = draw(st.integers(0, 20))
    stop = start + draw(st.integers(0, 20))
    return Units(plan, start, stop, draw(st.integers(1, 7)), draw(st.integers(1, shards)))


@given(some_units())
def test_units_hold_every_shard_of_every_step_once(units: Units) -> None:
    found = Counter(
        (step, shard) for unit in range(units.count) for steps, shard, _ in [units.address(unit)] for step in steps
    )
    wanted = {(step, shard) for step in range(units.start, units.stop) for shard in range(units.plan.shards)}
    real = {address: count for address, count in found.items() if address[1] != NO_SHARD}
    assert real == dict.fromkeys(wanted, 1)


@given(some_units())
def test_dealing_round_robin_gives_each_worker_its_own_shards_in_order(units: Units) -> None:
    for worker in range(units.workers):
        dealt = [units.address(unit) for unit in range(worker, units.count, units.workers)]
        assert all(owner == worker for _, _, owner in dealt)
        per_chunk = [dealt[i : i + units.slots] for i in range(0, len(dealt), units.slots)]
        assert len(per_chunk) == units.chunks
        steps: list[int] = []
        for chunk in per_chunk:
            assert len({part for part, _, _ in chunk}) == 1
            steps += chunk[0][0]
            shards = [shard for _, shard, _ in chunk if shard != NO_SHARD]
            assert shards == list(owned_shards(units.plan.shards, worker, units.workers))
        assert steps == list(range(units.start, units.stop))


@given(some_units())
def test_no_two_units_differ_in_steps_within_a_chunk(units: Units) -> None:
    every = units.slots * units.workers
    for chunk in range(units.chunks):
        parts = {units.address(unit)[0] for unit in range(chunk * every, (chunk + 1) * every)}
        assert len(parts) == 1
        assert 1 <= len(parts.pop()) <= units.steps


@given(st.integers(1, 10**9), st.integers(1, 10**6), st.integers(1, 64))
def test_a_unit_is_bounded_in_steps_and_bytes(row_bytes: int, batch: int, shards: int) -> None:
    plan = Plan((10**6,), 0, batch, shards)
    steps = steps_per_unit(plan, row_bytes)
    assert 1 <= steps <= MAX_STEPS_PER_UNIT
    assert steps == 1 or steps * (row_bytes * batch // shards) <= UNIT_BYTES


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Prepared:
    measures, species = load_iris(return_X_y=True)
    table = pa.table({"measures": measures.tolist(), "species": species})
    spec = Spec.model_validate(
        {
            "name": "iris",
            "data": {
                "source": {"path": "iris.parquet"},
                "inputs": {"measures": {"type": "number", "length": 4}},
                "target": {"column": "species", "type": "category"},
            },
            "model": {"type": "linear"},
        }
    )
    return prepare_by_hand(tmp_path_factory.mktemp("iris") / "prepared", spec, table)


class Dealt:
    """Stands for Ray's iterator of one worker: the units it is dealt, as the map step made them."""

    def __init__(self, folder: Path, units: Units, order: list[int], work: RowWork | None = None) -> None:
        self.read, self.order = UnitReader(folder, units, work), order

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return (self.read(pa.table({"id": [unit]})) for unit in self.order)


def feed(prepared: Prepared, units: Units, worker: int, *, order: list[int] | None = None, start: int = -1) -> Feed:
    order = list(range(worker, units.count, units.workers)) if order is None else order
    return Feed(
        Dealt(prepared.folder, units, order),
        units.plan,
        start=units.start if start < 0 else start,
        stop=units.stop,
        steps=units.steps,
        worker=worker,
        workers=units.workers,
    )


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (4, 1), (4, 3), (5, 2), (3, 3)])
@pytest.mark.parametrize("batch", [2, 32])
def test_the_rows_that_arrive_are_those_of_the_plan(iris: Prepared, shards: int, workers: int, batch: int) -> None:
    plan = Plan(iris.rows_per_file("train"), 7, batch, shards, window=2)
    units = Units(plan, 3, plan.steps_per_epoch + 2, 5, workers)
    source = iris.reader("train").read(np.arange(plan.num_rows))
    for worker in range(workers):
        steps = []
        for step, shards_of_step in feed(iris, units, worker):
            steps.append(step)
            assert list(shards_of_step) == list(owned_shards(shards, worker, workers))
            for shard, arrays in shards_of_step.items():
                rows = plan.shard_rows(step, shard)
                for name in (ROW, TARGET, "measures"):
                    assert np.array_equal(arrays[name], source[name][rows])
        assert steps == list(range(units.start, units.stop))


def test_row_wise_work_is_done_in_the_map_step_for_each_step_by_itself(iris: Prepared) -> None:
    class Marked(RowWork):
        """Row-wise work that shows what it was given."""

        def __call__(self, arrays: Mapping[str, Array], *, step: int, shard: int) -> dict[str, Array]:
            rows = len(arrays[ROW])
            return dict(arrays) | {"measures": arrays["measures"] + np.float32(1000 * step + 100 * shard + rows)}

    plan = Plan(iris.rows_per_file("train"), 7, 32, 3, window=2)
    units = Units(plan, 2, 2 * plan.steps_per_epoch, 4, 2)
    source = iris.reader("train").read(np.arange(plan.num_rows))
    for worker in range(2):
        dealt = Dealt(iris.folder, units, list(range(worker, units.count, 2)), Marked({}, 0))
        found = Feed(dealt, plan, start=2, stop=units.stop, steps=4, worker=worker, workers=2)
        for step, shards in found:
            for shard, arrays in shards.items():
                rows = plan.shard_rows(step, shard)
                mark = np.float32(1000 * step + 100 * shard + len(rows))
                assert np.array_equal(arrays["measures"], source["measures"][rows] + mark)
                assert np.array_equal(arrays[ROW], source[ROW][rows])


@pytest.mark.parametrize("order", [[2, 0], [0], [0, 2, 2], [1]])
def test_a_unit_out_of_order_lost_or_doubled_is_refused(iris: Prepared, order: list[int]) -> None:
    plan = Plan(iris.rows_per_file("train"), 7, 16, 2)
    units = Units(plan, 0, 6, 1, 2)
    with pytest.raises(FeedError, match="belongs"):
        list(feed(iris, units, 0, order=order))


def test_units_made_from_another_position_are_refused(iris: Prepared) -> None:
    """The driver and a worker look the position up by themselves; rows of other steps must not pass for these."""
    plan = Plan(iris.rows_per_file("train"), 7, 16, 2)
    made = Units(plan, 4, 8, 1, 1)
    with pytest.raises(FeedError, match="from step 4 on"):
        list(feed(iris, made, 0, start=3))
