"""The parts of the local cluster that need no Ray: ports, folder, flags, processes, record."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path

import pytest

from tidegate import cluster, cluster_environment, cluster_processes, connection
from tidegate.cluster_environment import MARK, NODE_FLAGS, Ports
from tidegate.errors import ClusterError

RECORD = cluster.LocalCluster(
    address="127.0.0.1:6379",
    dashboard_url="http://127.0.0.1:8265",
    serve_url="http://127.0.0.1:8000",
    auth="token",
    pid=os.getpid(),
    started="2026-01-01T00:00:00+00:00",
    temp_dir="/tmp/tidegate-none",
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(name="listener", params=["127.0.0.1", "0.0.0.0"])
def _listener(request: pytest.FixtureRequest) -> Iterator[int]:
    with socket.create_server((request.param, 0)) as server:
        yield server.getsockname()[1]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_port_with_a_listener_is_taken(listener: int) -> None:
    assert not cluster_environment.port_is_free(listener)


def test_a_port_is_free_once_its_listener_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()
        client.close()
    assert cluster_environment.port_is_free(port)


def test_ports_differ_and_avoid_the_reserved_ones() -> None:
    reserved = set(astuple(Ports()))
    chosen = astuple(cluster_environment.pick_ports(reserved))
    assert len(set(chosen)) == len(chosen)
    assert not reserved & set(chosen)
    assert all(20000 <= port < 30000 for port in chosen)


def test_the_folder_is_private_and_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    folder = cluster_environment.make_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(str(folder)) <= 27
    folder.rmdir()


def test_processes_get_the_flags_and_not_the_callers_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    variables = cluster_environment.process_environment(tmp_path, Ports(), "disabled")
    assert variables.items() >= {**NODE_FLAGS, "RAY_AUTH_MODE": "disabled", MARK: str(tmp_path)}.items()
    assert "RAY_ADDRESS" not in variables
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_everything_haproxy_writes_lies_in_the_private_folder(tmp_path: Path) -> None:
    variables = cluster_environment.process_environment(tmp_path, Ports(), "token")
    paths = [value for name, value in variables.items() if name.startswith("RAY_SERVE_HAPROXY") and "/" in value]
    assert len(paths) == 6
    assert all(path.startswith(str(tmp_path)) for path in paths)
    assert cluster_environment.ray_folder(tmp_path).parent == tmp_path


def test_gpus_are_counted_by_ray_unless_given(tmp_path: Path) -> None:
    counted = cluster_environment.start_command(tmp_path, Ports(), 8, None)
    assert "--num-cpus=8" in counted
    assert not any(word.startswith("--num-gpus") for word in counted)
    assert "--num-gpus=0" in cluster_environment.start_command(tmp_path, Ports(), 8, 0)


def test_stop_ends_marked_processes_and_their_descendants_only(tmp_path: Path) -> None:
    folder = str(tmp_path)
    # The child drops the mark and leaves the session, and ignores SIGTERM; the leader ends and orphans it.
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    leader = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}], env={{}}, "
        "start_new_session=True); time.sleep(60)"
    )
    marked = {**os.environ, MARK: folder}
    with (
        subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: folder + "x"}) as stranger,
        subprocess.Popen(
            [sys.executable, "-c", leader], env=marked, stdout=subprocess.PIPE, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = cluster_processes.members(process.pid, folder)
        assert len(found) == 2
        cluster_processes.stop(process.pid, folder)
        assert not [member for member in found if cluster_processes.find(member.pid)]
        assert stranger.poll() is None
        stranger.kill()


def test_stop_spares_the_caller_and_the_session_it_was_called_from(tmp_path: Path) -> None:
    caller = tmp_path / "caller.py"
    caller.write_text(
        "import os\nfrom tidegate import cluster_processes\n"
        f"cluster_processes.stop(os.getpid(), {str(tmp_path)!r})\nprint('caller alive', flush=True)\n"
    )
    script = f'sleep 60 & {MARK}="{tmp_path}" "{sys.executable}" "{caller}"; kill $! && echo neighbour was alive'
    # In a session of its own, so that a failure cannot reach the session that runs the tests.
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, start_new_session=True, check=False)
    assert done.stdout == "caller alive\nneighbour was alive\n", done.stderr


def test_a_zombie_counts_as_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        wait_for(lambda: cluster_processes.find(process.pid) is None)


def test_the_record_round_trips_and_is_private(tmp_path: Path) -> None:
    cluster._write_record(RECORD)
    assert cluster._read_record() == RECORD
    assert stat.S_IMODE((tmp_path / "home" / "cluster.json").stat().st_mode) == 0o600


def test_a_recycled_process_number_is_not_trusted() -> None:
    cluster._write_record(RECORD)
    assert cluster.current() is None


def test_a_damaged_record_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    cluster._write_record(RECORD)
    (tmp_path / "home" / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match=r"damaged.*remove it"):
        cluster.current()


def test_down_without_a_cluster() -> None:
    assert cluster.down() is False


def test_down_removes_a_stale_record() -> None:
    cluster._write_record(RECORD)
    assert cluster.down() is False
    assert cluster._read_record() is None
    assert cluster_processes.find(os.getpid()) is not None


def test_environment() -> None:
    assert (
        cluster.environment(RECORD).items()
        >= {
            "RAY_ADDRESS": "127.0.0.1:6379",
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
            "RAY_AUTH_MODE": "token",
        }.items()
    )


def test_up_refuses_a_taken_serve_port(listener: int) -> None:
    with pytest.raises(ClusterError, match=rf"port {listener} is in use; .*another"):
        cluster.up(serve_port=listener, auth="disabled")
    assert cluster.current() is None


def test_up_refuses_an_unknown_authentication() -> None:
    with pytest.raises(ClusterError, match="expected token or disabled"):
        cluster.up(auth="password")


def test_connect_without_a_cluster() -> None:
    with pytest.raises(ClusterError, match=r"no cluster is running; .*tidegate up"):
        connection.connect()


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:8265", "nowhere", ":1"])
def test_connect_wants_host_and_port(address: str) -> None:
    with pytest.raises(ClusterError, match="expected host:port"):
        connection.connect(address)


def test_connect_to_a_silent_port_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=f"no cluster answers at 127.0.0.1:{port}"):
        connection.connect()
    assert time.monotonic() - begun < 5


def test_an_untested_ray_is_warned_of_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    for version, warnings in (("2.60.3", 0), ("2.61.0", 1), ("2.59.0", 1)):
        monkeypatch.setattr(ray, "__version__", version)
        connection._warn_of_untested_ray.cache_clear()
        caplog.clear()
        for _ in range(2):
            connection._warn_of_untested_ray()
        assert len(caplog.records) == warnings
    assert "Ray 2.59.0 is older than the tested 2.60" in caplog.text
    connection._warn_of_untested_ray.cache_clear()


def test_status_needs_a_connection() -> None:
    with pytest.raises(ClusterError, match="connect"):
        connection.status()
