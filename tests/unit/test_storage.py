"""Where checkpoints are kept: the same behaviour on a local path and on any filesystem that pyarrow opens."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tidegate.errors import CheckpointError
from tidegate.training.storage import Storage


@pytest.fixture(params=["path", "file URI", "no local filesystem"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = tmp_path / "a folder with 100% of Übel" / "run"
    return Storage({"path": str(root), "file URI": root.as_uri(), "no local filesystem": "mock:///run"}[request.param])


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write("step/file", [b"one", memoryview(b"two"), b"", b"three"])
    storage.write("step/empty", [])
    assert storage.read("step/file") == b"onetwothree"
    assert storage.read("step/empty") == b""
    assert storage.names() == ["step"]
    assert storage.names("step") == ["empty", "file"]


def test_a_file_is_replaced(storage: Storage) -> None:
    storage.write("file", [b"a long content"])
    storage.write("file", [b"short"])
    assert storage.read("file") == b"short"
    assert storage.names() == ["file"]


def test_what_is_not_there_is_no_error(storage: Storage) -> None:
    assert storage.names() == storage.names("folder") == []
    assert storage.read("file") is None
    assert storage.read("folder/file") is None
    storage.delete("folder")


def test_files_and_folders_are_deleted(storage: Storage) -> None:
    for path in ("folder/one", "folder/two", "other/one"):
        storage.write(path, [b"x"])
    storage.delete("folder/one")
    assert storage.names("folder") == ["two"]
    storage.delete("folder")
    assert storage.names() == ["other"]


def test_a_folder_is_no_file(storage: Storage) -> None:
    storage.write("folder/file", [b"x"])
    with pytest.raises(CheckpointError, match="folder cannot be read") as caught:
        storage.read("folder")
    assert caught.value.remedy
    with pytest.raises(CheckpointError, match="folder cannot be written"):
        storage.write("folder", [b"x"])
    assert storage.read("folder/file") == b"x"
    assert storage.names() == ["folder"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    storage = Storage(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="cannot be listed"):
        storage.names()
    with pytest.raises(CheckpointError, match="cannot be written"):
        storage.write("folder/file", [b"x"])
    with pytest.raises(CheckpointError, match="cannot be read"):
        storage.read("folder/file")


def test_file_and_folders_are_on_the_disk_when_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        sync(handle)
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), (tmp_path / "folder" / "file").exists()))

    monkeypatch.setattr(os, "fsync", noted)
    Storage(str(tmp_path)).write("folder/file", [b"x"])
    file, *folders = synced
    assert file == (str(tmp_path / "folder" / "file.part"), False)
    assert folders == [(str(tmp_path / "folder"), True), (str(tmp_path), True)]


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("file", [b"old"])
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"file cannot be written: .*No space left") as caught:
        storage.write("file", [b"new"])
    assert caught.value.remedy.startswith("free some space")
    assert storage.read("file") == b"old"
    assert storage.names() == ["file"]
    storage.write("file", [b"new"])
    assert storage.read("file") == b"new"


def test_a_missing_right_is_told() -> None:
    # Not even root may make a folder in this one.
    with pytest.raises(CheckpointError, match="/sys/tidegate/file cannot be written") as caught:
        Storage("/sys/tidegate").write("file", [b"x"])
    assert caught.value.remedy.startswith("give this user the right")


@pytest.mark.parametrize("root", ["nosuch://place/folder", "file://host/folder"])
def test_a_place_that_cannot_be_opened_is_told(root: str) -> None:
    with pytest.raises(CheckpointError, match=root) as caught:
        Storage(root).names()
    assert "train.checkpoint.path" in caught.value.remedy


def test_messages_name_no_secret() -> None:
    storage = Storage("s3://user:secret@bucket/runs?region=eu-central-1&endpoint_override=127.0.0.1:9&session=secret")
    assert storage.place("step/file") == "s3://bucket/runs/step/file"
    with pytest.raises(CheckpointError) as caught:
        Storage("nosuch://user:secret@place").read("file")
    assert "secret" not in str(caught.value)


def test_it_travels_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("folder")
    storage.write("file", [b"x"])
    copy = pickle.loads(pickle.dumps(storage))  # noqa: S301 - it is how Ray sends it
    monkeypatch.chdir("/")
    assert copy.root == str(tmp_path / "folder")
    assert copy.read("file") == b"x"


def test_the_home_folder_may_be_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("~/checkpoints").root == str(tmp_path / "checkpoints")
