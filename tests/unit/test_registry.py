"""The registry and the record of runs, on a real SQLite file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tidegate
from tidegate import registry, store, tracking
from tidegate.errors import ConflictError, NotFoundError, SpecError, UnavailableError
from tidegate.registry import Version


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as it is after creation. Creating one takes seconds, copying it does not."""
    home = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert tracking.runs() == []
    return home / "mlflow.db"


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    # MLflow would leave its telemetry's id and, without a place of its own, the files of runs there.
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path / "home"


@pytest.fixture
def home(empty_home: Path, template: Path) -> Path:
    empty_home.mkdir(mode=0o700)
    shutil.copy(template, empty_home / "mlflow.db")
    return empty_home


def add(name: str = "digits", digest: str = "d1", run_id: str = "digits-7f3a") -> Version:
    folder = Path("/somewhere") / name / run_id
    return registry.register(
        name, path=folder, digest=digest, run_id=run_id, metrics={"accuracy": 0.98}, lineage={"run": run_id, "seed": 7}
    )


# A process that says it is ready, waits for a line, then registers a version and moves an alias to it.
RACER = """
import sys
from pathlib import Path
from tidegate import registry, store, tracking
store.load_mlflow()
print("ready", flush=True)
me = sys.stdin.readline().strip()
made = registry.register("digits", path=Path("/x"), digest=me, run_id=me, metrics={}, lineage={})
registry.set_alias("digits", "production", made.number, who=me, why="race")
print(made.number)
"""


def python(code: str) -> subprocess.Popen[str]:
    paths = [str(Path(next(iter(tidegate.__path__))).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    # As a person meets it: that MLflow keeps quiet must not hang on what it does in tests or was told by this process.
    for name in ("PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "CI"):
        environment.pop(name, None)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe
    )


@contextlib.contextmanager
def racers(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    processes = [python(RACER) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_three_processes_on_an_empty_home_get_three_numbers(empty_home: Path) -> None:
    with racers(3) as processes:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for index, process in enumerate(processes):
            assert process.stdin is not None
            process.stdin.write(f"run-{index}\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=240) for process in processes]
    assert [errors for _, errors in answers] == ["", "", ""]
    assert sorted(int(number) for number, _ in answers) == [1, 2, 3]
    moves = registry.alias_history("digits", "production")
    assert sorted(move.number for move in moves) == [1, 2, 3]
    assert [move.previous for move in moves] == [*(move.number for move in moves[1:]), None]
    assert registry.version("digits@production").number == moves[0].number
    assert os.listdir(empty_home.parent / "work") == []


def test_what_a_killed_creation_left_is_no_obstacle(empty_home: Path) -> None:
    empty_home.mkdir()
    (empty_home / "mlflow.db").touch()
    (empty_home / "mlflow.new").write_bytes(b"half a file")
    assert add().ref == "digits@1"
    assert not list(empty_home.glob("mlflow.new*"))


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_lost_database_is_not_replaced_by_an_empty_one(how: str, empty_home: Path) -> None:
    assert add().ref == "digits@1"
    file = empty_home / "mlflow.db"
    file.unlink()
    if how == "emptied":
        file.touch()
    with pytest.raises(UnavailableError, match=r"mlflow\.db is gone or empty.* restore it"):
        registry.versions()
    (empty_home / "mlflow.made").unlink()
    assert python("from tidegate import registry; print(registry.versions())").communicate(timeout=240) == ("[]\n", "")


def test_importing_is_cheap() -> None:
    process = python("import sys; from tidegate import registry; print('mlflow' in sys.modules)")
    assert process.communicate(timeout=240) == ("False\n", "")


def test_a_version_is_what_was_registered(home: Path) -> None:
    made = add()
    assert made == registry.version("digits")
    assert (made.ref, made.digest, made.path) == ("digits@1", "d1", "/somewhere/digits/digits-7f3a")
    assert (made.run_id, made.metrics, made.aliases) == ("digits-7f3a", {"accuracy": 0.98}, ())
    assert made.created.endswith("+00:00")
    assert registry.lineage(made) == registry.lineage("digits@1") == {"run": "digits-7f3a", "seed": 7}


def test_the_same_digest_of_the_same_run_is_registered_once(home: Path) -> None:
    first = add()
    assert add() == first
    assert add(digest="d2").number == 2
    assert add(run_id="digits-0001").number == 3
    assert [version.number for version in registry.versions("digits")] == [3, 2, 1]


def test_registering_again_returns_the_aliases(home: Path) -> None:
    add()
    registry.set_alias("digits", "production", 1, who="ana", why="first")
    assert add().aliases == ("production",)


def test_versions_of_all_models(home: Path) -> None:
    assert registry.versions() == []
    add("digits")
    add("reviews")
    add("digits", digest="d2")
    assert [version.ref for version in registry.versions()] == ["digits@2", "reviews@1", "digits@1"]
    assert registry.versions("nothing") == registry.versions("it's") == []


def test_references(home: Path) -> None:
    add()
    add(digest="d2")
    registry.set_alias("digits", "production", 1, who="ana", why="beats nothing")
    assert registry.version("digits").number == 2
    assert registry.version("digits@1").number == 1
    assert registry.version("digits@production").number == 1
    assert registry.version("digits@production").aliases == ("production",)
    assert registry.version("digits@2").aliases == ()


@pytest.mark.parametrize("ref", ["digits@2", "digits@01", "digits@", "digits@latest", "digits@1@1", "digits@it's"])
def test_a_missing_version_says_what_there_is(home: Path, ref: str) -> None:
    add()
    registry.set_alias("digits", "production", 1, who="ana", why="first")
    with pytest.raises(NotFoundError) as caught:
        registry.version(ref)
    assert repr(ref.partition("@")[2]) in str(caught.value)
    assert "expected one of 1, or an alias: production" in str(caught.value)


def test_a_missing_model_offers_those_alike(home: Path) -> None:
    with pytest.raises(NotFoundError, match="no model 'digits'; `tidegate models`"):
        registry.version("digits")
    add("digits")
    add("reviews")
    with pytest.raises(NotFoundError, match="no model 'digts'; expected one of digits;"):
        registry.version("digts@1")
    with pytest.raises(NotFoundError, match="one of reviews, digits;"):
        registry.alias_history("xxxxxx", "production")


def test_versions_registered_by_other_means_are_not_ours(home: Path) -> None:
    add()
    store.attempt(lambda client: client.create_model_version("digits", "/elsewhere"))
    store.attempt(lambda client: client.create_registered_model("Theirs"))
    assert [version.ref for version in registry.versions()] == ["digits@1"]


def test_alias_history(home: Path) -> None:
    for digest in ("d1", "d2", "d3"):
        add(digest=digest)
    assert registry.alias_history("digits", "production") == []
    for number in (1, 3, 3, 1):
        moved = registry.set_alias("digits", "production", number, who="ana", why=f"to {number}")
        assert (moved.number, moved.aliases) == (number, ("production",))
    registry.set_alias("digits", "production-eu", 2, who="bo", why="other")
    moves = registry.alias_history("digits", "production")
    assert [(move.number, move.previous, move.who, move.why) for move in moves] == [
        (1, 3, "ana", "to 1"),
        (3, 1, "ana", "to 3"),
        (1, None, "ana", "to 1"),
    ]
    assert moves == sorted(moves, key=lambda move: move.when, reverse=True)
    assert [move.number for move in registry.alias_history("digits", "production-eu")] == [2]


def test_an_alias_needs_a_version(home: Path) -> None:
    add()
    with pytest.raises(NotFoundError, match="digits has no version or alias '7'; expected one of 1; it has no aliases"):
        registry.set_alias("digits", "production", 7, who="ana", why="typo")
    assert registry.alias_history("digits", "production") == []


@pytest.mark.parametrize("alias", ["7", "latest", "v3", "Production", "a.b", "a@b", "", "x" * 64])
def test_an_alias_that_reads_as_something_else_is_refused(home: Path, alias: str) -> None:
    add()
    with pytest.raises(SpecError, match="alias"):
        registry.set_alias("digits", alias, 1, who="ana", why="first")


@pytest.mark.parametrize("name", ["a@1", "A", "", "a/b", "it's", "x" * 64])
def test_a_model_name_that_no_reference_could_name_is_refused(home: Path, name: str) -> None:
    with pytest.raises(SpecError, match="model name"):
        add(name)


def test_another_store(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(home / "mlflow.db", other / "team.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}/team.db")
    assert add(digest="d2").number == 2
    tracking.start_run("digits-7f3a", spec="{}", tags={})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert registry.version("digits").number == 1
    assert tracking.runs() == []


@pytest.mark.parametrize("store", ["mysql+absent://me:secret@there/x", "nonsense://me:secret@there/x"])
def test_a_store_that_cannot_be_opened_is_one_sentence_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(UnavailableError) as caught:
        registry.versions()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_locked_database_ends_in_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = home / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}?timeout=0.2")
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
    with contextlib.closing(sqlite3.connect(file)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=f"{file} cannot be used: .*database is locked; see which"):
            registry.versions()
        waited = time.monotonic() - began
        holder.rollback()
    assert 1.0 <= waited < 15.0
    assert add().number == 1
    assert capfd.readouterr() == ("", "")


def test_a_busy_moment_is_waited_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}?timeout=0.2")
    refused = 0
    with contextlib.closing(sqlite3.connect(file)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        busy = store._is_busy

        def release(error: Exception) -> bool:
            nonlocal refused
            refused += 1
            holder.rollback()
            return busy(error)

        monkeypatch.setattr(store, "_is_busy", release)
        assert registry.versions() == []
    assert refused == 1


def test_the_file_lock_is_not_waited_for_without_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_S", 0.2)
    with store.exclusive(), pytest.raises(UnavailableError, match=r"another process kept .* for 0.2 s"):
        add()


SPEC = "name: digits\ntrain: {epochs: 3, sizes: [1, 2], schedule: {kind: cosine}}\n"


def test_a_run_from_start_to_end(home: Path, tmp_path: Path) -> None:
    run_id = tracking.start_run("digits-7f3a", spec=SPEC, tags={"workers": "2"})
    started = tracking.run("digits-7f3a")
    assert (started.run_id, started.name, started.status, started.ended) == (run_id, "digits-7f3a", "running", None)
    assert started.tags == {"workers": "2"}
    assert started.params == {
        "name": "digits",
        "train.epochs": "3",
        "train.sizes": "[1, 2]",
        "train.schedule": '{"kind": "cosine"}',
    }
    tracking.log_metrics(run_id, 1, {"loss": 2.0})
    tracking.log_metrics("digits-7f3a", 2, {"loss": 1.0, "recall C++/é": 0.5})
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "curve.png").write_bytes(b"png")
    tracking.log_files(run_id, tmp_path / "pictures")
    tracking.finish_run(run_id, "finished")
    ended = tracking.run(run_id)
    assert (ended.status, ended.metrics) == ("finished", {"loss": 1.0, "recall C___é": 0.5})
    assert ended.ended is not None
    assert ended.ended >= ended.started
    kept = home / "artifacts" / "_runs" / run_id / "artifacts"
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == {
        "spec.yaml": SPEC.encode(),
        "curve.png": b"png",
    }


def test_a_long_history_keeps_every_point(home: Path) -> None:
    run_id = tracking.start_run("long", spec="{}", tags={})
    tracking.log_history(run_id, [(step, {"loss": 1 / step, "rate": 0.1}) for step in range(1, 1202)])
    points = store.attempt(lambda client: client.get_metric_history(run_id, "loss"))
    assert [(point.step, point.value) for point in points] == [(step, 1 / step) for step in range(1, 1202)]


def test_runs_are_listed_newest_first(home: Path) -> None:
    for name in ("a-1", "a-2", "a-3"):
        tracking.start_run(name, spec="{}", tags={})
    assert [record.name for record in tracking.runs()] == ["a-3", "a-2", "a-1"]
    with pytest.raises(ConflictError, match="run a-2 exists"):
        tracking.start_run("a-2", spec="{}", tags={})
    with pytest.raises(NotFoundError, match="no run 'b-2'; expected one of a-2"):
        tracking.run("b-2")
    with pytest.raises(NotFoundError, match="no run 'b-2'"):
        tracking.log_metrics("b-2", 1, {"loss": 1.0})


def test_a_version_is_tied_to_its_run_in_mlflow(home: Path) -> None:
    run_id = tracking.start_run("digits-7f3a", spec="{}", tags={})
    made = add(run_id="digits-7f3a")
    assert made.run_id == "digits-7f3a"
    assert store.attempt(lambda client: client.get_model_version("digits", "1")).run_id == run_id


@pytest.mark.parametrize("name", ["", "a b", "it's", "-a"])
def test_a_run_name_that_is_no_file_name_is_refused(home: Path, name: str) -> None:
    with pytest.raises(SpecError, match="run name"):
        tracking.start_run(name, spec="{}", tags={})
    with pytest.raises(NotFoundError):
        tracking.run(name)


def test_bad_ends_are_refused(home: Path, tmp_path: Path) -> None:
    run_id = tracking.start_run("a-1", spec="{}", tags={})
    with pytest.raises(SpecError, match="run status 'done'"):
        tracking.finish_run(run_id, "done")
    with pytest.raises(NotFoundError, match="no folder"):
        tracking.log_files(run_id, tmp_path / "none")
