"""Histories of resizes, kills and restarts: every row counts once an epoch, and both feeds bring the same bits."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.data.feed import Feed, UnitReader, Units
from tidegate.data.local_feed import LocalFeed
from tidegate.data.plan import Plan, owned_shards
from tidegate.data.prepared import FORMAT, MANIFEST, ROW, TARGET, Prepared, open_folder, write_arrays
from tidegate.data.random import Rows
from tidegate.spec.data import Data
from tidegate.transforms.augment import RowWork
from tidegate.transforms.base import Array

SHAPE = (1, 3, 2)
SEED = 11
DATA = Data.model_validate(
    {
        "source": {"path": "rows.parquet"},
        "inputs": {"pixels": {"type": "image", "size": [3, 2], "augment": {"shift": 1, "flip": True}}},
        "target": {"column": "label", "type": "category"},
    }
)
Step = dict[int, dict[str, Array]]
"""What all workers together bring for one step: each shard's columns."""


@dataclass(frozen=True)
class Event:
    """Workers train for some steps. Then their number changes, after a checkpoint; or they die, and there is none."""

    workers: int
    steps: int
    end: Literal["resize", "kill"]


@dataclass(frozen=True)
class History:
    """What happens to a run until it has done `total` steps."""

    plan: Plan
    total: int
    every: int
    """Steps between checkpoints."""
    events: list[Event]


@st.composite
def histories(draw: st.DrawFn, *, rows: int, files: int, steps: int) -> History:
    shards = draw(st.integers(1, 7))
    sizes = tuple(draw(st.lists(st.integers(1, rows), min_size=1, max_size=files)))
    least = -(-sum(sizes) // steps)
    batch = draw(st.integers(least, max(least, sum(sizes))))
    plan = Plan(sizes, draw(st.integers(0, 2**32)), batch, shards, draw(st.integers(1, 4)))
    event = st.builds(Event, st.integers(1, shards), st.integers(0, 2 * steps), st.sampled_from(["resize", "kill"]))
    total = plan.steps_per_epoch * draw(st.integers(1, 3))
    return History(plan, total, draw(st.integers(1, 2 * steps)), draw(st.lists(event, max_size=7)))


Bring = Callable[[int, int, int], list[Any]]
"""`bring(start, stop, workers)`: what these workers get for the steps `start..stop-1`."""


def lived(history: History, bring: Bring) -> list[Any]:
    """What was trained on in the end: steps that a kill undid are taken back."""
    kept: list[Any] = []
    for event in [*history.events, Event(1, history.total, "resize")]:
        start = len(kept)
        stop = min(history.total, start + event.steps)
        kept += bring(start, stop, event.workers)
        assert len(kept) == stop
        if event.end == "kill":
            # Checkpoints were written at the start, and whenever `every` steps were done.
            del kept[max(start, stop - stop % history.every) :]
    assert len(kept) == history.total
    return kept


def assert_once_an_epoch(plan: Plan, steps: list[Rows]) -> None:
    per_epoch = plan.steps_per_epoch
    for first in range(0, len(steps), per_epoch):
        rows = np.concatenate(steps[first : first + per_epoch])
        assert sorted(rows.tolist()) == list(range(plan.num_rows))


@given(history=histories(rows=40, files=12, steps=12))
@settings(max_examples=2000, deadline=None)
def test_by_the_plan_alone_every_row_counts_once_an_epoch(history: History) -> None:
    plan = history.plan

    def bring(start: int, stop: int, workers: int) -> list[Rows]:
        owned = [owned_shards(plan.shards, worker, workers) for worker in range(workers)]
        return [np.concatenate([plan.rows(step, shards)[0] for shards in owned]) for step in range(start, stop)]

    kept = lived(history, bring)
    assert_once_an_epoch(plan, kept)
    for step, rows in enumerate(kept):
        assert rows.tolist() == [row for shard in range(plan.shards) for row in plan.shard_rows(step, shard)]


@given(history=histories(rows=12, files=6, steps=8), steps_per_unit=st.integers(1, 5), augmented=st.booleans())
@settings(max_examples=400, deadline=None)
def test_both_feeds_bring_every_row_once_an_epoch_and_the_same_bits(
    history: History, steps_per_unit: int, augmented: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = written(Path(folder), history.plan.rows_per_file)
        work = RowWork.of(DATA, prepared, SEED) if augmented else None
        group = Group(prepared, history, steps_per_unit, work)
        local, dealt = lived(history, group.local), lived(history, group.ray_data)
        assert_planned(history.plan, local, prepared, work)
        assert_same(local, dealt)


def assert_planned(plan: Plan, steps: list[Step], prepared: Prepared, work: RowWork | None) -> None:
    """Row for row what the plan says, with what the files hold and the work that belongs to it."""
    files = prepared.reader("train").read(np.arange(plan.num_rows))
    for step, shards in enumerate(steps):
        assert list(shards) == list(range(plan.shards))
        for shard, arrays in shards.items():
            wanted = {name: array[plan.shard_rows(step, shard)] for name, array in files.items()}
            if work is not None:
                wanted = work(wanted, step=step, shard=shard)
            assert_equal(arrays, wanted)
    assert_once_an_epoch(plan, [np.concatenate([arrays[ROW] for arrays in shards.values()]) for shards in steps])


def assert_same(left: list[Step], right: list[Step]) -> None:
    for one, other in zip(left, right, strict=True):
        assert list(one) == list(other)
        for shard in one:
            assert_equal(one[shard], other[shard])


def assert_equal(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


class Group:
    """The workers of a run, fed in either way."""

    def __init__(self, prepared: Prepared, history: History, steps: int, work: RowWork | None) -> None:
        self.prepared, self.plan, self.total, self.steps, self.work = (
            prepared,
            history.plan,
            history.total,
            steps,
            work,
        )

    def local(self, start: int, stop: int, workers: int) -> list[Step]:
        feeds = [
            LocalFeed(
                self.prepared,
                self.plan,
                start=start,
                stop=self.total,
                worker=worker,
                workers=workers,
                work=self.work,
            )
            for worker in range(workers)
        ]
        return together([iter(feed) for feed in feeds], start, stop)

    def ray_data(self, start: int, stop: int, workers: int) -> list[Step]:
        units = Units(self.plan, start, self.total, self.steps, workers)
        read = UnitReader(self.prepared.folder, units, self.work)
        feeds = [
            Feed(
                Dealt(read, order),
                self.plan,
                start=start,
                stop=self.total,
                steps=self.steps,
                worker=worker,
                workers=workers,
            )
            for worker, order in enumerate(dealt(units.count, workers))
        ]
        return together([iter(feed) for feed in feeds], start, stop)


def together(feeds: list[Iterator[tuple[int, Step]]], start: int, stop: int) -> list[Step]:
    """What all workers bring up to the step `stop`, at which they end without having asked for more."""
    steps: list[Step] = []
    for expected, parts in enumerate(islice(zip(*feeds, strict=True), stop - start), start):
        assert [step for step, _ in parts] == [expected] * len(feeds)
        steps.append({shard: arrays for _, batch in parts for shard, arrays in batch.items()})
        assert len(steps[-1]) == sum(len(batch) for _, batch in parts)
    assert len(steps) == stop - start
    return steps


def dealt(blocks: int, workers: int) -> list[list[int]]:
    """As Ray's splitter deals blocks of one row each: in order, each to the worker that has the fewest rows so far."""
    orders: list[list[int]] = [[] for _ in range(workers)]
    for block in range(blocks):
        min(orders, key=len).append(block)
    return orders


class Dealt:
    """Stands for Ray's iterator of one worker: the units it is dealt, as the map step makes them."""

    def __init__(self, read: UnitReader, order: list[int]) -> None:
        self.read, self.order = read, order

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return (self.read(pa.table({"id": [unit]})) for unit in self.order)


def written(folder: Path, rows_per_file: tuple[int, ...]) -> Prepared:
    """A prepared dataset of pictures in which every number tells its row."""
    first, entries = 0, []
    for number, rows in enumerate(rows_per_file):
        mine = np.arange(first, first + rows)
        pixels = (10 * mine[:, None] + np.arange(6)).astype(np.float32)
        name, first = f"train-{number:05d}.arrow", first + rows
        size = write_arrays(folder / name, {ROW: mine, TARGET: mine % 3, "pixels": pixels})
        entries.append({"name": name, "rows": rows, "bytes": size})
    channels, height, width = SHAPE
    image = {"shape": [height, width, channels], "max_value": 255.0, "mean": [0.5], "deviation": [0.25]}
    manifest = {
        "format": FORMAT,
        "fingerprint": "made by hand",
        "columns": {"pixels": {"type": "image", **image}},
        "target": {"column": "label", "state": {"type": "category", "classes": ["0", "1", "2"]}},
        "splits": {"train": entries, "validation": [], "test": []},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return open_folder(folder)
