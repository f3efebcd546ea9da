"""The shell's view: help, exit codes, one line an error. No cluster is needed for any of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tidegate import keys, tracking
from tidegate.cli.main import main
from tidegate.cli.main import tidegate as command
from tidegate.cli.runs import SETTLED_S, Resized, paused
from tidegate.errors import ClusterError, ConflictError, NotFoundError, SpecError, StoppedError, TidegateError
from tidegate.training.progress import News, Phase, Progress

TIDEGATE = str(Path(sys.executable).parent / "tidegate")
ROOT = Path(__file__).parents[2]
NO_CLUSTER = "no cluster is running; start one with `tidegate up` or set RAY_ADDRESS\n"


def tidegate(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TIDEGATE_"))}
    environment = {**inherited, "HOME": str(home), "TIDEGATE_HOME": str(home / "kept"), **variables}
    return subprocess.run(
        [TIDEGATE, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["up"],
        ["train"],
        ["models", "alias"],
        ["endpoints", "remove"],
        ["keys", "create"],
        ["predict"],
        ["spec", "check"],
        ["spec", "init"],
    ],
)
def test_help_says_what_a_command_does(arguments: list[str], tmp_path: Path) -> None:
    done = tidegate(tmp_path, *arguments, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: tidegate")
    assert done.stderr == ""


def test_a_wrong_spec_is_refused_with_every_mistake(tmp_path: Path) -> None:
    spec = tmp_path / "wrong.yaml"
    spec.write_text(
        "name: Digits\nsed: 3\ndata: {source: {path: a.csv}, inputs: {x: {type: numbr}}}\nmodel: {type: mlp}\n"
    )
    done = tidegate(tmp_path, "train", str(spec))
    assert done.returncode == 2
    assert done.stdout == ""
    for part in (
        "4 mistakes",
        "name: found 'Digits'",
        "sed: unknown key; did you mean 'seed'?",
        "data.target: missing",
        "numbr",
    ):
        assert part in done.stderr


def test_spec_check_and_schema(tmp_path: Path) -> None:
    done = tidegate(tmp_path, "spec", "check", "jobs/specs/digits.yaml", "deployments/digits.yaml")
    assert done.stdout == "jobs/specs/digits.yaml: fine\ndeployments/digits.yaml: fine\n"
    schema = json.loads(tidegate(tmp_path, "spec", "schema").stdout)
    assert set(schema["required"]) == {"name", "data", "model"}


@pytest.mark.parametrize("arguments", [["status"], ["endpoints"], ["deploy", "deployments/digits.yaml"]])
def test_without_a_cluster_the_remedy_is_named(arguments: list[str], tmp_path: Path) -> None:
    done = tidegate(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr == f"error: {NO_CLUSTER}"


def test_a_traceback_on_request(tmp_path: Path) -> None:
    done = tidegate(tmp_path, "train", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    shown = tidegate(tmp_path, "train", "nowhere.yaml", TIDEGATE_TRACEBACK="1").stderr
    assert "Traceback" in shown
    assert "nowhere.yaml cannot be read" in shown


def test_a_wrong_setting_is_one_line_too(tmp_path: Path) -> None:
    done = tidegate(tmp_path, "train", "nowhere.yaml", TIDEGATE_TRACEBACK="maybe")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_an_empty_home_says_what_to_do_next(tmp_path: Path) -> None:
    assert tidegate(tmp_path, "down").stdout.startswith("nothing to stop")
    assert tidegate(tmp_path, "models").stdout == "no models yet: tidegate train SPEC, or tidegate register WHAT\n"
    assert tidegate(tmp_path, "runs").stdout == "no runs yet: tidegate train SPEC\n"
    assert tidegate(tmp_path, "keys").stdout == "no keys yet: tidegate keys create TENANT\n"
    missing = tidegate(tmp_path, "models", "show", "digits@3")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: no model 'digits'") or "digits" in missing.stderr


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"rubbish")
    assert "is no readable parquet" in tidegate(tmp_path, "predict", "digits", str(tmp_path / "rows.parquet")).stderr
    assert "no known kind" in tidegate(tmp_path, "predict", "digits", str(tmp_path / "rows.xls")).stderr


def test_where_answers_go_is_checked_first(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("x\n1\n")
    assert "no known kind" in tidegate(tmp_path, "predict", "digits", str(rows), "-o", "out.xls").stderr
    assert "no folder /nowhere" in tidegate(tmp_path, "predict", "digits", str(rows), "-o", "/nowhere/out.csv").stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["resize", "digits-7f3"], "Missing argument 'WORKERS'"),
        (["resize", "digits-7f3", "many"], "'many' is not a valid integer"),
        (["resize", "digits-7f3", "0"], "0 is not in the range x>=1"),
        (["pause"], "Missing argument 'RUN'"),
        (["resume", "digits-7f3", "--wait"], "No such option"),
        (["train", "--name", "digits-7f3"], "Missing argument 'SPEC'"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_done(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert complaint in done.output


@pytest.mark.parametrize("name", ["status", "runs", "resize", "pause", "resume", "stop"])
def test_help_of_what_steers_a_run(name: str) -> None:
    done = CliRunner().invoke(command, [name, "--help"])
    assert (done.exit_code, done.output.split()[:3]) == (0, ["Usage:", "tidegate", name])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with runs as drivers leave them (finished, stopped, failed, and one whose driver was lost), no cluster."""
    home = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        for number, status in enumerate(("finished", "killed", "failed", None)):
            run = tracking.start_run(f"digits-{number}", spec="name: digits", tags={"tidegate.model": "digits"})
            if status:
                tracking.finish_run(run, status)
        progress = Progress(step=30, total_steps=400, rows_per_s=100.0, workers=2)
        News(progress).write(home / "runs" / "digits-3")
        yield home


def test_runs_without_a_cluster(kept: Path) -> None:
    """What MLflow calls running may not run; without a cluster nobody can tell."""
    done = CliRunner().invoke(command, ["runs"])
    words = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines()[1:]}
    assert words == {
        "digits-3": ["running?", "30/400"],
        "digits-2": ["failed", "-"],
        "digits-1": ["stopped", "-"],
        "digits-0": ["finished", "-"],
    }
    assert done.stderr == f"running? could not be checked: {NO_CLUSTER}"
    found = {one["run"]: one for one in json.loads(CliRunner().invoke(command, ["runs", "--json"]).stdout)}
    assert (found["digits-3"]["status"], found["digits-3"]["step"]) == ("running?", 30)
    one = json.loads(CliRunner().invoke(command, ["status", "digits-3", "--json"]).stdout)
    assert one == found["digits-3"] | {"version": None}


def test_the_status_of_a_run_without_a_cluster(kept: Path) -> None:
    shown = CliRunner().invoke(command, ["status", "digits-3"]).output
    assert "recorded as running, but that could not be checked" in shown
    assert "30 of 400" in shown
    assert "tidegate resume digits-1" in CliRunner().invoke(command, ["status", "digits-1"]).output
    assert "resume" not in CliRunner().invoke(command, ["status", "digits-0"]).output
    missing = CliRunner().invoke(command, ["status", "digits-9"])
    assert isinstance(missing.exception, NotFoundError)


def test_without_a_cluster_runs_are_listed_without_ray(kept: Path) -> None:
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom tidegate.cli.main import tidegate\n"
        "done = CliRunner().invoke(tidegate, ['runs'])\n"
        "print('digits-3' in done.output, 'ray' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True False False\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["resume", "digits-0"], ConflictError, "run digits-0 has finished"),
        (["resume", "digits-9"], NotFoundError, "no run 'digits-9'"),
        (["resume", "digits-1"], ClusterError, "no cluster is running"),
        (["resize", "digits-3", "2"], ClusterError, "no cluster is running"),
        (["pause", "digits-3"], ClusterError, "no cluster is running"),
        (["stop", "digits-3", "--wait"], ClusterError, "no cluster is running"),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(
    kept: Path, arguments: list[str], error: type[TidegateError], said: str
) -> None:
    done = CliRunner().invoke(command, arguments)
    assert isinstance(done.exception, error)
    assert said in str(done.exception)
    assert done.output == ""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def test_a_key_is_shown_once_and_only_there(home: Path) -> None:
    done = CliRunner().invoke(command, ["keys", "create", "acme", "--endpoint", "net", "--expires-in", "90d"])
    (key,) = keys.listed()
    assert keys.read().find(done.stdout.strip()) == key
    assert done.stdout.count("\n") == 1, "so that it can be taken by $(...)"
    assert "it is not shown again" in done.stderr
    assert done.stdout.strip() not in done.stderr
    assert (key.scopes, key.endpoints, key.expires) == (("predict",), ("net",), key.created + timedelta(days=90))
    for words in (["keys"], ["keys", "list"], ["keys", "list", "--json"]):
        listed = CliRunner().invoke(command, words).output
        assert key.id in listed
        assert done.stdout.strip().removeprefix(f"tg_{key.id}_") not in listed
        assert key.digest not in listed


def test_keys_are_listed_and_revoked(home: Path) -> None:
    made, _ = keys.create("acme", scopes=["predict", "deploy"], endpoints=["net", "digits"])
    old, _ = keys.create("beta", expires_in=timedelta(microseconds=1))
    heads, first, second = CliRunner().invoke(command, ["keys", "list"]).output.splitlines()
    assert re.split(" {2,}", heads) == [
        *("id", "tenant", "scopes", "endpoints", "created (UTC)", "expires (UTC)", "expired")
    ]
    created = made.created.isoformat()[:19]
    assert re.split(" {2,}", first) == [made.id, "acme", "predict, deploy", "net, digits", created, "never", "no"]
    assert re.split(" {2,}", second)[3] == "all"
    assert re.split(" {2,}", second)[-1] == "yes"
    one, two = json.loads(CliRunner().invoke(command, ["keys", "list", "--json"]).output)
    assert (one["tenant"], one["endpoints"], one["expires"], one["expired"]) == ("acme", ["net", "digits"], None, False)
    assert (two["id"], two["expired"], "digest" in two) == (old.id, True, False)
    assert CliRunner().invoke(command, ["keys", "revoke", old.id]).output == f"revoked {old.id} of beta\n"
    assert json.loads(CliRunner().invoke(command, ["keys", "revoke", made.id, "--json"]).output)["id"] == made.id
    assert keys.listed() == []


def test_a_key_as_json_is_read_by_programs(home: Path) -> None:
    words = ["keys", "create", "acme", "--scope", "admin", "--scope", "deploy", "--json"]
    told = json.loads(CliRunner().invoke(command, words).stdout)
    found = keys.read().find(told["key"])
    assert found is not None
    assert (told["id"], told["scopes"], told["expires"]) == (found.id, ["admin", "deploy"], None)
    assert "digest" not in told


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("12h", 43_200), ("90d", 7_776_000)])
def test_how_long_a_key_lasts(home: Path, text: str, seconds: int) -> None:
    CliRunner().invoke(command, ["keys", "create", "acme", "--expires-in", text])
    (key,) = keys.listed()
    assert key.expires == key.created + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        *(
            (["create", "acme", "--expires-in", text], SpecError, "30m, 12h, 90d")
            for text in ("9", "d", "-1d", "1w", "90days", "")
        ),
        (["create", "acme", "--expires-in", "0d"], SpecError, "never opens anything"),
        (["create", "acme", "--scope", "all"], SpecError, "one of predict, deploy, admin"),
        (["create", "Acme"], SpecError, "tenant 'Acme'"),
        (["create", "acme", "--endpoint", "a/b"], SpecError, "endpoint 'a/b'"),
        (["revoke", "12345678"], NotFoundError, "no key '12345678'"),
        (["revoke", "tg_12345678_secret"], SpecError, "the 8 hex digits after tg_"),
    ],
)
def test_a_wrong_key_is_refused(home: Path, arguments: list[str], error: type[TidegateError], said: str) -> None:
    done = CliRunner().invoke(command, ["keys", *arguments])
    assert isinstance(done.exception, error)
    assert said in str(done.exception)
    assert "secret" not in str(done.exception)
    assert done.output == ""
    assert not (home / "keys.json").exists()


def test_a_damaged_file_of_keys_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "keys.json").write_text("{")
    for words in (["list"], ["create", "acme"], ["revoke", "12345678"]):
        done = tidegate(tmp_path, "keys", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "keys.json is damaged" in done.stderr
    words = {"COMP_WORDS": "tidegate keys revoke ", "COMP_CWORD": "3", "_TIDEGATE_COMPLETE": "bash_complete"}
    completed = tidegate(tmp_path, **words)
    assert (completed.stdout.strip(), completed.stderr) == ("", "")


def test_keys_need_neither_ray_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom tidegate.cli.main import tidegate\n"
        "done = CliRunner().invoke(tidegate, ['keys', 'create', 'acme'])\n"
        "print(done.output[:3], 'ray' in sys.modules, 'torch' in sys.modules)"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = {**inherited, "TIDEGATE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "tg_ False False\n", done.stderr


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """A command `tidegate fail` that raises what is put here."""
    raised: list[BaseException] = []

    @click.command()
    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(sys, "argv", ["tidegate", "fail"])
    monkeypatch.delenv("TIDEGATE_TRACEBACK", raising=False)
    command.add_command(fail)
    yield raised
    del command.commands["fail"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (StoppedError("run d is stopped at step 7"), 4, "run d is stopped at step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("run d is stopped at step 7"), 130, "run d is stopped at step 7"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd (TIDEGATE_TRACEBACK=1 shows where)"),
    ],
)
def test_how_a_command_ends(
    failing: list[BaseException], error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(error)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert capsys.readouterr().err.strip() == said


def news(phase: Phase, workers: int = 0, wanted: int | None = 4) -> News:
    return News(Progress(step=30, total_steps=400, workers=workers), phase=phase, wanted=wanted, bounds=(1, 6))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_resize_is_awaited_through_its_phases() -> None:
    look = Resized("d", 4, Clock())
    assert look(news("training", 2)) is None
    assert look(news("yielding", 2)) is None
    assert look(news("starting")) is None
    assert look(news("training", 4)) == "d trains with 4 workers"


def test_a_resize_that_finds_no_room_says_so_when_that_has_settled() -> None:
    clock = Clock()
    look = Resized("d", 4, clock)
    for workers in (2, 3):
        assert look(news("training", workers)) is None
        clock.now += SETTLED_S
        assert look(news("training", workers)) is None
    assert look(news("yielding", 3)) is None
    clock.now += 10 * SETTLED_S
    assert look(news("training", 3)) is None
    clock.now += SETTLED_S + 1
    assert look(news("training", 3)) == "d trains with 3 workers: there is no room for more yet"


def test_fewer_workers_always_have_room() -> None:
    clock = Clock()
    look = Resized("d", 1, clock)
    assert look(news("training", 2, wanted=1)) is None
    clock.now += 10 * SETTLED_S
    assert look(news("training", 2, wanted=1)) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "d ended first"),
        (news("stopping"), "d ended first"),
        (news("finishing"), "d ended first"),
        (news("pausing", 2), "d is paused; it takes up to 4 workers when it goes on"),
        (news("paused"), "d is paused; it takes up to 4 workers when it goes on"),
        (news("training", 4, wanted=1), "d has been asked for 1 worker since"),
    ],
)
def test_a_resize_that_will_not_be(found: News | None, said: str) -> None:
    assert Resized("d", 4, Clock())(found) == said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (news("pausing", 2), None),
        (news("paused"), "d is paused at step 30"),
        (news("training", 2), "d was resumed meanwhile"),
        (news("stopping"), "d ended first"),
        (None, "d ended first"),
    ],
)
def test_a_pause_is_awaited(found: News | None, said: str | None) -> None:
    assert paused("d", found) == said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_the_names_that_there_are(shell: str, tmp_path: Path) -> None:
    for name in ("runs/digits-1", "runs/letters-1", "artifacts/digits", "artifacts/_runs"):
        (tmp_path / "kept" / name).mkdir(parents=True)
    assert "_TIDEGATE_COMPLETE" in tidegate(tmp_path, "completion", shell).stdout

    def completed(words: str) -> str:
        # fish tells the word, the others its place.
        place = words.split()[-1] if shell == "fish" else str(len(words.split()) - 1)
        return tidegate(tmp_path, COMP_WORDS=words, COMP_CWORD=place, _TIDEGATE_COMPLETE=f"{shell}_complete").stdout

    assert "letters-1" in completed("tidegate stop let")
    assert "digits-1" not in completed("tidegate stop let")
    assert "_runs" not in (shown := completed("tidegate models show d"))
    assert "digits" in shown
    assert "endpoints" in completed("tidegate end")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_HOME", str(tmp_path / "kept"))
        first, second = (keys.create(tenant)[0].id for tenant in ("acme", "beta"))
    assert first in (shown := completed(f"tidegate keys revoke {first[:7]}"))
    assert second not in shown
