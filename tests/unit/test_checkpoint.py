"""Checkpoints: whole or not there, verified when read, the one before when the newest is damaged.

Run as a program it is the process that is killed, or that meets a full disk, while it writes one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tidegate.errors import CheckpointError
from tidegate.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    Checkpoints,
    differences,
    environment,
    optimizer_tensors,
    restore_optimizer,
)
from tidegate.training.storage import Storage

STATE = {
    "identity": "a hash",
    "finished": False,
    "history": [{"epoch": 1, "train.loss": 0.1}],
    "best": {"epoch": 0, "value": None},
}


def example(step: int, seed: int = 0) -> Checkpoint:
    torch.manual_seed(step + seed)
    tensors = {
        "model": {
            # Larger than what is collected before it goes to the disk, so that a file may be there by half.
            "layer.weight": torch.randn(64, 64),
            "layer.bias": torch.randn(3, 6)[:, ::2],
            "empty": torch.empty(0, 2),
        },
        "optimizer": {"0.step": torch.tensor(float(step)), "0.exp_avg": torch.randn(3, 4)},
    }
    return Checkpoint(step, tensors, STATE)


def is_equal(one: Checkpoint | None, two: Checkpoint) -> bool:
    return (
        one is not None
        and (one.step, one.state, one.tensors.keys()) == (two.step, two.state, two.tensors.keys())
        and all(one.tensors[part].keys() == two.tensors[part].keys() for part in two.tensors)
        and all(
            torch.equal(one.tensors[part][name], tensor) and one.tensors[part][name].dtype == tensor.dtype
            for part, tensors in two.tensors.items()
            for name, tensor in tensors.items()
        )
    )


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def file_of(folder: Path, part: str) -> Path:
    (file,) = folder.glob(f"{part}-00000-*.safetensors")
    return file


@pytest.fixture(params=["local", "not local"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path) if request.param == "local" else "mock:///runs/run")


def test_what_is_written_is_read(checkpoints: Checkpoints) -> None:
    checkpoints.write(example(12))
    assert is_equal(checkpoints.read(12), example(12))
    assert is_equal(checkpoints.latest(), example(12))
    assert checkpoints.steps() == [12]


def test_no_optimizer_state_is_a_checkpoint_too(checkpoints: Checkpoints) -> None:
    bare = Checkpoint(1, {"model": {"w": torch.ones(1)}, "optimizer": {}}, STATE)
    checkpoints.write(bare)
    assert is_equal(checkpoints.latest(), bare)


def test_a_run_without_checkpoints_has_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() is None
    assert checkpoints.steps() == []
    checkpoints.prune(1)
    with pytest.raises(CheckpointError, match=r"step-000000005 is damaged: it has no checkpoint\.json"):
        checkpoints.read(5)


def test_the_newest_step_is_the_latest(checkpoints: Checkpoints) -> None:
    for step in (1_000, 20, 1_234_567_890, 999):
        checkpoints.write(example(step))
    assert checkpoints.steps() == [20, 999, 1_000, 1_234_567_890]
    assert is_equal(checkpoints.latest(), example(1_234_567_890))


def test_the_same_step_is_replaced(checkpoints: Checkpoints) -> None:
    checkpoints.write(example(10))
    finished = replace(example(10, seed=1), state=STATE | {"finished": True})
    checkpoints.write(finished)
    assert is_equal(checkpoints.latest(), finished)
    checkpoints.prune(1)
    assert is_equal(checkpoints.latest(), finished)


def test_prune_keeps_the_newest(checkpoints: Checkpoints) -> None:
    for step in (3, 5, 20, 100):
        checkpoints.write(example(step))
    for _ in range(2):
        checkpoints.prune(2)
        assert checkpoints.steps() == [20, 100]
    assert is_equal(checkpoints.latest(), example(100))


def test_check_tells_a_place_that_cannot_be_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.check()
    assert checkpoints.steps() == []
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        Checkpoints(str(tmp_path / "file")).check()


def test_the_layout(tmp_path: Path) -> None:
    Checkpoints(str(tmp_path)).write(example(12))
    (folder,) = tmp_path.iterdir()
    assert folder == folder_of(tmp_path, 12)
    document = json.loads((folder / MANIFEST).read_text())
    assert document["state"] == STATE
    for part, files in document["parts"].items():
        (entry,) = files
        assert entry["file"] == file_of(folder, part).name
        assert entry["bytes"] == (folder / entry["file"]).stat().st_size
    # Neither a pickle nor anything unfinished.
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".safetensors", ".safetensors"]


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def test_tensor_files_are_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        f"{dtype} {shape}": torch.ones(shape).to(dtype) for dtype in DTYPES for shape in ((), (3,), (0, 2), (5, 1, 3))
    }
    Checkpoints(str(tmp_path)).write(Checkpoint(1, {"model": tensors}, {}))
    file = file_of(folder_of(tmp_path, 1), "model")
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + size]).items():
        assert (8 + size + entry["data_offsets"][0]) % tensors[name].element_size() == 0


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    weight = torch.randn(2, 3)
    Checkpoints(str(tmp_path)).write(Checkpoint(1, {"model": {"one": weight, "other": weight, "row": weight[0]}}, {}))
    found = Checkpoints(str(tmp_path)).read(1).tensors["model"]
    assert torch.equal(found["one"], weight)
    assert torch.equal(found["other"], weight)
    assert torch.equal(found["row"], weight[0])


def test_a_type_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    odd = Checkpoint(1, {"model": {"w": torch.zeros(1, dtype=torch.complex128)}}, {})
    with pytest.raises(CheckpointError, match="complex128"):
        Checkpoints(str(tmp_path)).write(odd)
    assert not any(tmp_path.iterdir())


def test_one_part_may_lie_in_several_files(tmp_path: Path) -> None:
    """As a sharded model will write them: one file a rank."""
    checkpoints, storage = Checkpoints(str(tmp_path)), Storage(str(tmp_path))
    checkpoints.write(example(1))
    folder = folder_of(tmp_path, 1)
    document = json.loads((folder / MANIFEST).read_text())
    document["parts"]["model"] += document["parts"].pop("optimizer")
    seal(folder, document)
    tensors = example(1).tensors
    assert is_equal(checkpoints.read(1), Checkpoint(1, {"model": {**tensors["model"], **tensors["optimizer"]}}, STATE))
    checkpoints.prune(1)
    assert len(storage.names("step-000000001")) == 3


def seal(folder: Path, document: dict[str, Any]) -> None:
    """Write a manifest that says it is what was written."""
    document.pop("sha256")
    sha256 = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(document | {"sha256": sha256}))


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints(str(tmp_path)).write(example(1))
    Checkpoints(str(tmp_path)).write(example(2))
    paths: list[str] = []
    read = Storage.read

    def noted(storage: Storage, path: str) -> bytes | None:
        paths.append(path)
        return read(storage, path)

    monkeypatch.setattr(Storage, "read", noted)
    Checkpoints(str(tmp_path)).latest()
    assert sorted(Path(path).suffix for path in paths) == [".json", ".safetensors", ".safetensors"]


def truncate(folder: Path) -> None:
    file = file_of(folder, "model")
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    file = file_of(folder, "optimizer")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def edit(folder: Path, **changes: object) -> None:
    seal(folder, json.loads((folder / MANIFEST).read_text()) | changes)


def junk(folder: Path) -> None:
    """Not safetensors, but what the manifest says."""
    file = file_of(folder, "model")
    file.write_bytes(b"junk")
    document = json.loads((folder / MANIFEST).read_text())
    document["parts"]["model"] = [
        {"file": file.name, "bytes": 4, "sha256": hashlib.sha256(b"junk").hexdigest()},
    ]
    seal(folder, document)


def misprint(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    assert '"train.loss": 0.1' in text
    (folder / MANIFEST).write_text(text.replace('"train.loss": 0.1', '"train.loss": 0.3'))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "a bit flipped": flip,
    "junk": junk,
    "a file gone": lambda folder: file_of(folder, "model").unlink(),
    "a digit of the state": misprint,
    "half a manifest": lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40]),
    "empty": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "no bytes of text": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "parts no mapping": lambda folder: edit(folder, parts=["model"]),
    "files no list": lambda folder: edit(folder, parts={"model": 3}),
    "an entry no mapping": lambda folder: edit(folder, parts={"model": [3]}),
    "another format": lambda folder: edit(folder, format=99),
    "no step": lambda folder: edit(folder, step=None),
    "another step": lambda folder: edit(folder, step=7),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(example(10))
    checkpoints.write(example(20))
    damage(folder_of(tmp_path, 20))
    with pytest.raises(CheckpointError, match="step-000000020 is damaged"):
        checkpoints.read(20)
    assert is_equal(checkpoints.latest(), example(10))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-000000020" in caplog.text
    damage(folder_of(tmp_path, 10))
    assert checkpoints.latest() is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        checkpoints = Checkpoints(root)
        checkpoints.write(example(1))
        file = data.draw(st.sampled_from(sorted(folder_of(Path(root), 1).iterdir())))
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        found = checkpoints.latest()
        # White space in the manifest may be of another kind.
        assert found is None or is_equal(found, example(1))
        assert found is None or file.name == MANIFEST


def test_storage_that_cannot_be_read_is_no_damage(tmp_path: Path) -> None:
    """A run must not begin again because its storage was away for a moment."""
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(example(10))
    checkpoints.write(example(20))
    file = file_of(folder_of(tmp_path, 20), "model")
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.latest()


def test_unfinished_ones_are_passed_over_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    for step in (10, 20):
        checkpoints.write(example(step))
    (folder_of(tmp_path, 20) / MANIFEST).unlink()
    (tmp_path / "step-30").mkdir()
    (tmp_path / "notes").touch()
    assert is_equal(checkpoints.latest(), example(10))
    assert checkpoints.steps() == [10]
    assert not caplog.records


def test_prune_deletes_unfinished_ones_only_before_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    for step in (10, 30, 20):
        checkpoints.write(example(step))
    for step in (10, 30):
        (folder_of(tmp_path, step) / MANIFEST).unlink()
    checkpoints.prune(1)
    assert sorted(tmp_path.iterdir()) == [folder_of(tmp_path, 20), folder_of(tmp_path, 30)]


def test_prune_never_deletes_the_last_whole_one(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        Checkpoints(str(tmp_path)).write(example(step))
    for step in (20, 30):
        flip(folder_of(tmp_path, step))
    Checkpoints(str(tmp_path)).prune(1)
    assert is_equal(Checkpoints(str(tmp_path)).latest(), example(10))


def test_a_damaged_one_beyond_does_not_hide_what_is_written_after_going_back(tmp_path: Path) -> None:
    for step in (10, 20):
        Checkpoints(str(tmp_path)).write(example(step))
    flip(folder_of(tmp_path, 20))
    checkpoints = Checkpoints(str(tmp_path))
    assert is_equal(checkpoints.latest(), example(10))
    checkpoints.write(example(15))
    checkpoints.prune(1)
    assert is_equal(checkpoints.latest(), example(15))
    assert checkpoints.steps() == [15]


def test_without_a_whole_one_nothing_is_deleted(tmp_path: Path) -> None:
    for step in (10, 20):
        Checkpoints(str(tmp_path)).write(example(step))
        flip(folder_of(tmp_path, step))
    Checkpoints(str(tmp_path)).prune(1)
    assert Checkpoints(str(tmp_path)).steps() == [10, 20]


def test_one_of_another_spec_or_other_data_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.latest("another hash") is None
    checkpoints.write(example(10))
    assert is_equal(checkpoints.latest("a hash"), example(10))
    with pytest.raises(CheckpointError, match="another spec or to other data; give this run another name"):
        checkpoints.latest("another hash")
    checkpoints.write(Checkpoint(20, {}, {}))
    with pytest.raises(CheckpointError, match="another spec"):
        checkpoints.latest("a hash")


def test_a_write_that_is_killed_is_never_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = set()
    for number, root in enumerate(killed_at_every_point(tmp_path, step=20)):
        checkpoints = Checkpoints(str(root))
        found = checkpoints.latest()
        assert found is not None
        assert is_equal(found, example(10) if found.step == 10 else example(20, seed=1)), root
        assert found.step == checkpoints.steps()[-1]
        outcomes.add(found.step)
        if number % 5 == 0:
            checkpoints.write(example(30))
            checkpoints.prune(3)
            assert sorted(root.iterdir()) == [folder_of(root, step) for step in sorted({10, found.step, 30})]
            assert all(len(list(folder.iterdir())) == 3 for folder in root.iterdir())
    assert outcomes == {10, 20}
    assert not caplog.records


def test_a_step_that_is_written_again_is_whole_all_the_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = set()
    for root in killed_at_every_point(tmp_path, step=10):
        checkpoints = Checkpoints(str(root))
        found = checkpoints.latest()
        is_old, is_new = is_equal(found, example(10)), is_equal(found, example(10, seed=1))
        assert is_old or is_new, root
        outcomes.add(is_old)
        checkpoints.prune(1)
        assert len(list(folder_of(root, 10).iterdir())) == 3
        assert is_equal(checkpoints.latest(), example(10) if is_old else example(10, seed=1))
    assert outcomes == {True, False}
    assert not caplog.records


def killed_at_every_point(root: Path, step: int) -> list[Path]:
    """Roots of checkpoints, each with step 10 and a write of `step` that was killed, each at another point."""
    run("kill", str(root), str(step))
    points = sorted(root.iterdir())
    assert len(points) > 30
    return points


def test_a_full_disk_leaves_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    run("fill", str(tmp_path))


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_everywhere(root: Path, step: int) -> None:
    Checkpoints(str(root / "000")).write(example(10))
    for point in itertools.count():
        folder, following = root / f"{point:03d}", root / f"{point + 1:03d}"
        shutil.copytree(folder, following)
        child = os.fork()
        if not child:
            die_at(point)
            Checkpoints(str(folder)).write(example(step, seed=1))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            shutil.rmtree(folder)
            shutil.rmtree(following)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


def die_at(point: int) -> None:
    """Kill this process before or after the operation on files of that number."""
    left = iter(range(point))

    def profile(_frame: object, event: str, function: Any) -> None:
        is_operation = getattr(function, "__name__", "") in ("open", "write", "flush", "fsync", "replace", "__exit__")
        if event in ("c_call", "c_return") and is_operation and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


def fill_everywhere(root: Path) -> None:
    checkpoints = Checkpoints(str(root))
    checkpoints.write(example(10))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for space in (0, 100, 4_000, 16_500):
        for step in (10, 20):
            resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
            with pytest.raises(CheckpointError, match=r"cannot be written: .*; free some space"):
                checkpoints.write(example(step, seed=1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert is_equal(checkpoints.latest(), example(10))
            assert list(root.iterdir()) == [folder_of(root, 10)]
            assert len(list(folder_of(root, 10).iterdir())) == 3
    checkpoints.write(example(20))
    assert is_equal(checkpoints.latest(), example(20))


def test_environments_that_differ_are_told() -> None:
    here = environment(torch.device("cpu"))
    assert here["threads"] == torch.get_num_threads()
    assert here["torch"] == torch.__version__
    assert here["device"] == "cpu"
    assert json.loads(json.dumps(here)) == here
    assert differences(here, dict(here)) == []
    assert differences({"threads": 1, "cpu": "AVX2"}, {"threads": 2, "cpu": "AVX512", "device": "cpu"}) == [
        "the number of compute threads was 1 and is 2",
        "the CPU capability was AVX2 and is AVX512",
        "the device was not noted and is cpu",
    ]
    assert len(differences(dict.fromkeys(here, "other"), here)) == len(here)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_it_had_not_been_stored(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}
    torch.manual_seed(0)
    one = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    first = kind(one, **options)
    for _ in range(3):
        step(first, one)
    two = [tensor.detach().clone().requires_grad_() for tensor in one]
    second = kind(two, **options)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(Checkpoint(3, {"optimizer": optimizer_tensors(first)}, STATE))
    restore_optimizer(second, checkpoints.read(3).tensors["optimizer"])
    for _ in range(3):
        step(first, one)
        step(second, two)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def step(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
    optimizer.zero_grad()
    sum(tensor.square().sum() for tensor in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill_everywhere(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        fill_everywhere(Path(sys.argv[2]))
