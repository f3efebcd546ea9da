"""The local feed: the rows of the plan from any step on, read ahead by a thread that ends when nobody needs it."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits

from tidegate.data.local_feed import STEPS_AHEAD, LocalFeed
from tidegate.data.plan import Plan, owned_shards
from tidegate.data.prepared import ROW, TARGET, Prepared
from tidegate.errors import DataError
from tidegate.spec.run import Spec
from tidegate.transforms.augment import RowWork
from tidegate.transforms.base import Array

FILES = 40
SPEC = Spec.model_validate(
    {
        "name": "digits",
        "data": {
            "source": {"path": "digits.parquet"},
            "inputs": {
                "pixels": {"type": "image", "size": [8, 8], "max_value": 16.0, "augment": {"shift": 1, "flip": True}}
            },
            "target": {"column": "label", "type": "category"},
        },
        "model": {"type": "cnn"},
    }
)


def made(folder: Path, prepare_by_hand: Any) -> Prepared:
    pixels, labels = load_digits(return_X_y=True)
    table = pa.table({"pixels": pixels.tolist(), "label": labels})
    prepared = prepare_by_hand(folder, SPEC, table, files=FILES)
    assert isinstance(prepared, Prepared)
    return prepared


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Prepared:
    return made(tmp_path_factory.mktemp("digits") / "prepared", prepare_by_hand)


def plan_of(prepared: Prepared, *, batch: int = 64, shards: int = 4, window: int = 8) -> Plan:
    return Plan(prepared.rows_per_file("train"), 7, batch, shards, window)


def feed(
    prepared: Prepared,
    plan: Plan,
    *,
    start: int = 0,
    stop: int = 12,
    worker: int = 0,
    workers: int = 1,
    work: RowWork | None = None,
) -> LocalFeed:
    return LocalFeed(prepared, plan, start=start, stop=stop, worker=worker, workers=workers, work=work)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert_threads_end(threads())


def assert_threads_end(found: list[threading.Thread]) -> None:
    for thread in found:
        thread.join(30)
        assert not thread.is_alive()


def augment(prepared: Prepared) -> RowWork:
    work = RowWork.of(SPEC.data, prepared, 7)
    assert work is not None
    return work


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (4, 1), (4, 3), (5, 2), (3, 3)])
@pytest.mark.parametrize(("batch", "window"), [(3, 40), (64, 1), (64, 8), (1437, 8)])
def test_the_rows_are_those_of_the_plan(digits: Prepared, shards: int, workers: int, batch: int, window: int) -> None:
    plan = plan_of(digits, batch=batch, shards=shards, window=window)
    source = digits.reader("train").read(np.arange(plan.num_rows))
    start, stop = max(0, plan.steps_per_epoch - 3), plan.steps_per_epoch + 3
    for worker in range(workers):
        steps = []
        for step, batch_of_step in feed(digits, plan, start=start, stop=stop, worker=worker, workers=workers):
            steps.append(step)
            assert list(batch_of_step) == list(owned_shards(shards, worker, workers))
            for shard, arrays in batch_of_step.items():
                rows = plan.shard_rows(step, shard)
                assert list(arrays) == [ROW, TARGET, "pixels"]
                for name, array in arrays.items():
                    assert array.dtype == source[name].dtype
                    assert np.array_equal(array, source[name][rows])
        assert steps == list(range(start, stop))


def test_the_arrays_are_the_callers_own(digits: Prepared) -> None:
    plan = plan_of(digits, batch=1437)
    for work in (None, augment(digits)):
        first, second = (
            {shard: arrays["pixels"] for shard, arrays in batch.items()}
            for _, batch in [next(iter(feed(digits, plan, work=work))) for _ in range(2)]
        )
        for shard, pixels in first.items():
            assert np.array_equal(pixels, second[shard])
            pixels[:] = -1
        _, third = next(iter(feed(digits, plan, work=work)))
        assert all(np.array_equal(third[shard]["pixels"], pixels) for shard, pixels in second.items())


@pytest.mark.parametrize("workers", [1, 3])
def test_row_wise_work_is_done_to_each_shard_by_itself(digits: Prepared, workers: int) -> None:
    plan, work = plan_of(digits), augment(digits)
    for worker in range(workers):
        options = {"start": 17, "stop": 30, "worker": worker, "workers": workers}
        plain = list(feed(digits, plan, **options))
        changed = list(feed(digits, plan, work=work, **options))
        assert [step for step, _ in changed] == [step for step, _ in plain] == list(range(17, 30))
        for (step, before), (_, after) in zip(plain, changed, strict=True):
            assert list(after) == list(before)
            for shard, arrays in before.items():
                wanted = work(arrays, step=step, shard=shard)
                assert all(np.array_equal(after[shard][name], wanted[name]) for name in wanted)
                assert not np.array_equal(arrays["pixels"], wanted["pixels"])


class Watched(RowWork):
    """Row-wise work that tells which steps it has begun."""

    def __init__(self) -> None:
        super().__init__({}, 0)
        self.begun: list[int] = []
        self.news = threading.Condition()

    def __call__(self, arrays: Mapping[str, Array], *, step: int, shard: int) -> dict[str, Array]:
        with self.news:
            self.begun.append(step)
            self.news.notify_all()
        return dict(arrays)

    def has_begun(self, step: int, within_s: float = 60) -> bool:
        with self.news:
            return self.news.wait_for(lambda: step in self.begun, within_s)


def test_a_thread_works_on_the_next_steps_and_no_further(digits: Prepared) -> None:
    work = Watched()
    plan = plan_of(digits, shards=1)
    taken = 0
    for step, _ in feed(digits, plan, stop=15, work=work):
        taken += 1
        assert work.has_begun(min(14, step + STEPS_AHEAD))
        if step == 0:
            # That something never happens shows in time only; a thread that goes on does so at once.
            assert not work.has_begun(STEPS_AHEAD + 1, within_s=0.3)
        assert max(work.begun) <= step + STEPS_AHEAD
        assert threading.current_thread() not in threads()
    assert taken == 15
    assert work.begun == list(range(15))


def test_without_row_wise_work_there_is_no_thread(digits: Prepared) -> None:
    iterator = iter(feed(digits, plan_of(digits)))
    next(iterator)
    assert threads() == []


@pytest.mark.parametrize("end", ["closed", "forgotten", "in a cycle", "exhausted", "broken off"])
def test_the_thread_ends_with_the_iterator(digits: Prepared, end: str) -> None:
    iterator: Any = iter(feed(digits, plan_of(digits), work=augment(digits)))
    next(iterator)
    found = threads()
    assert len(found) == 1
    if end == "closed":
        iterator.close()
    elif end == "in a cycle":
        cycle: list[Any] = [iterator]
        cycle.append(cycle)
        del iterator, cycle
        gc.collect()
    elif end == "exhausted":
        assert len(list(iterator)) == 11
    elif end == "broken off":
        with pytest.raises(RuntimeError, match="the loop"):
            raise_in_loop(iterator)
        del iterator
    else:
        del iterator
    assert_threads_end(found)


def raise_in_loop(iterator: Iterator[Any]) -> None:
    for _ in iterator:
        raise RuntimeError("the loop failed")


def test_a_new_iterator_starts_over(digits: Prepared) -> None:
    """One for each epoch, say: no thread is left of those before."""
    again = feed(digits, plan_of(digits), work=augment(digits))
    seen = [[(step, batch[0]["pixels"].tobytes()) for step, batch in again] for _ in range(3)]
    assert seen[0] == seen[1] == seen[2]
    assert_threads_end(threads())


@pytest.mark.parametrize("with_work", [False, True])
def test_a_damaged_file_is_named_at_the_step_that_reads_it(
    tmp_path: Path, prepare_by_hand: Any, with_work: bool
) -> None:
    prepared = made(tmp_path / "prepared", prepare_by_hand)
    plan = plan_of(prepared, window=1)
    second = prepared.files("train")[plan.window_files((0, 1))[0]]
    second.write_bytes(second.read_bytes()[:100])
    iterator = iter(feed(prepared, plan, work=augment(prepared) if with_work else None))
    # A file has 35 or 36 rows: the first batch of 64 already needs the second.
    with pytest.raises(DataError, match=rf"{second.name} is damaged"):
        next(iterator)
    third = prepared.files("train")[plan.window_files((0, 2))[0]]
    third.unlink()
    with pytest.raises(DataError, match=r"is damaged"):
        list(feed(prepared, plan, start=1, work=augment(prepared) if with_work else None))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list a process's maps")
def test_files_gone_by_are_closed(digits: Prepared) -> None:
    """Forty files of a few rows each: at most those of two windows are mapped, whatever was read before."""
    plan = plan_of(digits, window=4)
    most = 0
    for _ in feed(digits, plan, stop=3 * plan.steps_per_epoch):
        maps = Path("/proc/self/maps").read_text().splitlines()
        most = max(most, len({line.split()[-1] for line in maps if str(digits.folder) in line}))
    assert 8 <= most <= 16


def test_a_batch_may_need_more_files_than_stay_open(digits: Prepared) -> None:
    plan = plan_of(digits, batch=1437, shards=1)
    source = digits.reader("train").read(np.arange(plan.num_rows))
    for step, batch in feed(digits, plan, stop=3):
        assert np.array_equal(batch[0]["pixels"], source["pixels"][plan.shard_rows(step, 0)])


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice on files")
def test_the_next_windows_files_are_asked_for_when_a_window_begins(
    digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    advise = os.posix_fadvise

    def noted(descriptor: int, start: int, length: int, advice: int) -> None:
        asked.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, advice))
        advise(descriptor, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", noted)
    plan = plan_of(digits, batch=36, window=8)
    names = [file.name for file in digits.files("train")]

    def names_of(window: tuple[int, int]) -> set[str]:
        return {names[file] for file in plan.window_files(window)}

    before: tuple[int, int] | None = None
    # Up to the last window: the one after it is of the next epoch, and some of its files are open still.
    for step, _ in feed(digits, plan, start=3, stop=plan.steps_per_epoch):
        window = plan.window_of(step)
        if window == (0, 4):
            break
        begins = [window] * (before is None) + [plan.window_after(window)] * (window != before)
        assert {name for name, _ in asked} == set().union(*(names_of(one) for one in begins))
        assert all(advice == os.POSIX_FADV_WILLNEED for _, advice in asked)
        before = window
        asked.clear()
    assert before == (0, 3)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice on files")
def test_a_file_is_asked_for_in_pieces_that_the_kernel_takes(digits: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, __: pieces.append((start, length)))
    monkeypatch.setattr("tidegate.data.prepared.ADVICE_BYTES", 1000)
    size = digits.files("train")[3].stat().st_size
    reader = digits.reader("train")
    reader.read_ahead([3])
    assert pieces == [(start, 1000) for start in range(0, size, 1000)]
    reader.read(reader.offsets[3:4])
    reader.read_ahead([3])
    assert len(pieces) == -(-size // 1000), "a file that is open is not asked for again"
