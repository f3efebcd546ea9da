"""The `ray_data` feed: brings every worker its shards of every step, in order, through Ray Data.

The dataset's blocks are *units* of the plan: one shard over a few steps. Each block is a single row that holds the unit
as Arrow IPC bytes, because Ray's splitter deals a block to the worker with the fewest rows so far: with one row a block
that is strictly round robin. Units are ordered for the number of workers so that dealing gives each worker its
contiguous range of shards. Every unit names itself, and arrival is checked against the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ray.train import DataConfig

from tidegate.data.plan import Plan, owned_shards
from tidegate.data.prepared import arrays_batch, batch_arrays, open_folder
from tidegate.errors import FeedError
from tidegate.transforms.augment import RowWork
from tidegate.transforms.base import Array

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)
UNIT_BYTES = 16 * 2**20
"""About how large a unit is: large enough to hide a task's cost, small enough to arrive soon."""
MAX_STEPS_PER_UNIT = 64
NO_SHARD = -1


@dataclass(frozen=True)
class Units:
    """The units of the steps `start..stop-1` for some number of workers; `steps` are the steps of each unit."""

    plan: Plan
    start: int
    stop: int
    steps: int
    workers: int

    @property
    def slots(self) -> int:
        """Shards a worker has at most: units each worker gets for the same steps, some of them possibly empty."""
        return -(-self.plan.shards // self.workers)

    @property
    def chunks(self) -> int:
        return -(-(self.stop - self.start) // self.steps)

    @property
    def count(self) -> int:
        return self.chunks * self.slots * self.workers

    def address(self, unit: int) -> tuple[range, int, int]:
        """Steps, shard (or NO_SHARD) and worker of a unit."""
        place, worker = divmod(unit, self.workers)
        chunk, slot = divmod(place, self.slots)
        shards = owned_shards(self.plan.shards, worker, self.workers)
        return self.chunk_steps(chunk), shards[slot] if slot < len(shards) else NO_SHARD, worker

    def chunk_steps(self, chunk: int) -> range:
        first = self.start + chunk * self.steps
        return range(first, min(first + self.steps, self.stop))


def steps_per_unit(plan: Plan, row_bytes: int) -> int:
    """How many steps a unit covers."""
    shard_bytes = max(1, row_bytes * min(plan.global_batch, plan.num_rows) // plan.shards)
    return max(1, min(MAX_STEPS_PER_UNIT, UNIT_BYTES // shard_bytes))


class UnitReader:
    """The map step: reads the rows of one unit and does the row-wise work. Runs on any CPU of the cluster."""

    def __init__(self, folder: Path, units: Units, work: RowWork | None) -> None:
        self.folder, self.units, self.work = folder, units, work

    def __call__(self, block: pa.Table) -> pa.Table:
        unit = int(block.column("id")[0].as_py())
        steps, shard, _ = self.units.address(unit)
        payload = self._payload(steps, shard) if shard != NO_SHARD else b""
        return pa.table({"unit": [unit], "step": [steps.start], "shard": [shard], "rows": _one_binary(payload)})

    def _payload(self, steps: range, shard: int) -> pa.Buffer:
        rows = [self.units.plan.shard_rows(step, shard) for step in steps]
        arrays = _reader(self.folder).read(np.concatenate(rows))
        if self.work is not None:
            arrays = _worked(self.work, arrays, steps, shard, [len(part) for part in rows])
        batch = arrays_batch(arrays)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue()


def _worked(work: RowWork, arrays: dict[str, Array], steps: range, shard: int, sizes: list[int]) -> dict[str, Array]:
    """Arrays of one shard over some steps, of `sizes` rows each, with each step's row-wise work done."""
    ends = np.cumsum(sizes).tolist()
    parts = [
        work({name: array[end - size : end] for name, array in arrays.items()}, step=step, shard=shard)
        for step, size, end in zip(steps, sizes, ends, strict=True)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}


_readers: dict[Path, Any] = {}


def _reader(folder: Path) -> Any:
    """One reader a process: units read the same files again and again."""
    if folder not in _readers:
        _readers.clear()
        _readers[folder] = open_folder(folder).reader("train")
    return _readers[folder]


def _one_binary(payload: pa.Buffer | bytes) -> pa.Array:
    buffer = pa.py_buffer(payload)
    offsets = pa.py_buffer(np.asarray([0, buffer.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


class PlannedShards(DataConfig):  # type: ignore[misc]
    """Tells Ray Train how to deal the units of the plan: in order, one worker after the other.

    The dataset that the trainer is given stands for the position only; what is read depends on the number of workers,
    which is known here.
    """

    def __init__(self, folder: Path, stop: int, plan: Plan, steps: int, work: RowWork | None) -> None:
        super().__init__()
        self.folder, self.stop, self.plan, self.steps, self.work = folder, stop, plan, steps, work

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        start = int(datasets["train"].take(1)[0]["start"])
        dataset = self._units(Units(self.plan, start, self.stop, self.steps, world_size))
        return [{"train": split} for split in dataset.streaming_split(world_size, equal=False)]

    def _units(self, units: Units) -> ray.data.Dataset:
        import ray.data

        read = UnitReader(self.folder, units, self.work)
        count = max(1, units.count)
        dataset = ray.data.range(count, override_num_blocks=count).map_batches(
            read, batch_format="pyarrow", batch_size=None
        )
        context = dataset.context
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        return dataset


def position(start: int) -> ray.data.Dataset:
    """What the trainer is given in place of data: the step to go on from."""
    import ray.data

    return ray.data.from_items([{"start": start}])


class Feed:
    """A worker's side: an iterator over steps, each with the worker's shards and their rows."""

    def __init__(self, shard: Any, plan: Plan, *, start: int, stop: int, steps: int, worker: int, workers: int) -> None:
        self.units = Units(plan, start, stop, steps, workers)
        self.worker = worker
        self._blocks = iter(shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
        self._arrived = 0

    def __iter__(self) -> Iterator[tuple[int, dict[int, dict[str, Array]]]]:
        """`(step, {shard: {column: rows}})` from the start on. Raises FeedError when a unit is not the planned one."""
        for chunk in range(self.units.chunks):
            units = dict(self._next() for _ in range(self.units.slots))
            units.pop(NO_SHARD, None)
            used = dict.fromkeys(units, 0)
            for step in self.units.chunk_steps(chunk):
                batch = {}
                for shard, arrays in units.items():
                    count = len(self.units.plan.shard_rows(step, shard))
                    batch[shard] = {name: array[used[shard] : used[shard] + count] for name, array in arrays.items()}
                    used[shard] += count
                yield step, batch

    def _next(self) -> tuple[int, dict[str, Array]]:
        planned = self._arrived * self.units.workers + self.worker
        steps, shard, _ = self.units.address(planned)
        table = next(self._blocks, None)
        # The step too: units are numbered from where the run goes on, and both sides look that up by themselves.
        found = None if table is None else tuple(table.column(key)[0].as_py() for key in ("unit", "step", "shard"))
        if table is None or found != (planned, steps.start, shard):
            raise FeedError(
                f"worker {self.worker} of {self.units.workers} was given {_named(found)} where "
                f"{_named((planned, steps.start, shard))} belongs",
                remedy="this is a fault of Tidegate or of this release of Ray: please report it",
            )
        self._arrived += 1
        return shard, {} if shard == NO_SHARD else _unpacked(table.column("rows"))


def _named(unit: tuple[int, int, int] | None) -> str:
    return "nothing" if unit is None else f"unit {unit[0]} (from step {unit[1]} on, shard {unit[2]})"


def _unpacked(column: pa.ChunkedArray) -> dict[str, Array]:
    value = column.chunk(0)[0].as_buffer()
    return batch_arrays(pa.ipc.open_stream(value).read_next_batch())
