"""All looks in one order: from this machine to the cluster and to what is kept."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tidegate import cluster, dashboard, ray_token, settings
from tidegate.cluster import LocalCluster
from tidegate.cluster_environment import HOST, Ports
from tidegate.doctor import access, kept, machine, nodes, software
from tidegate.doctor.finding import Finding, wrong
from tidegate.doctor.sight import Sight, look
from tidegate.errors import TidegateError

LOOPBACK = (HOST, "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class Named:
    """The cluster that commands would work on. `address` is "" for none; `source` who named it."""

    address: str
    source: str
    local: LocalCluster | None

    @property
    def is_api(self) -> bool:
        return self.address.startswith(("http://", "https://"))

    @property
    def host(self) -> str:
        return urlsplit(self.address).hostname or "" if self.is_api else self.address.rpartition(":")[0]


def findings() -> Iterator[Finding]:
    """Everything that can be looked at now, as it is found."""
    yield software.python(platform.python_version())
    yield software.ray(software.installed_ray())
    yield from _cluster()
    yield from _look("HAProxy", machine.haproxy)
    yield from _look("devices", _devices)
    yield from _look("memory", lambda: machine.memory(*machine.measured_memory()))
    yield from _look("MLflow", kept.database)
    yield from _look("leftovers", kept.leftovers)


def _look(name: str, check: Callable[[], Finding]) -> Iterator[Finding]:
    """One finding, also where looking itself fails."""
    try:
        yield check()
    except (TidegateError, OSError, ValueError) as error:
        happened, remedy = getattr(error, "happened", str(error)), getattr(error, "remedy", "")
        yield wrong(name, happened, remedy or "TIDEGATE_TRACEBACK=1 and the command that failed show more")


def _devices() -> Finding:
    cards = machine.count_cards()
    return machine.devices(machine.count_cpus(), cards, machine.cards_of_torch() if cards else None)


def _cluster() -> Iterator[Finding]:
    home = Path(settings.HOME.text()).expanduser().resolve()
    stored = kept.storage(home)
    try:
        named = _named() if stored.state != "wrong" else Named("", "", None)
    except TidegateError:
        named = Named("", "", None)  # a damaged record; `leftovers` tells of it
    yield from (_through_api(named) if named.is_api else _as_driver(named, home))
    yield stored
    local = named.local
    folder = local.temp_dir if local else None
    yield from _look("ports", lambda: machine.serve_port(_serve_port(local), folder))
    yield machine.dashboard_port(_port(local.dashboard_url) if local else Ports().dashboard, folder)


def _named() -> Named:
    local = cluster.current()
    address = os.environ.get("RAY_ADDRESS", "")
    if address and not (local and address == local.address):
        return Named(address, "RAY_ADDRESS", None)
    return Named(local.address, "tidegate up", local) if local else Named("", "", None)


def _serve_port(local: LocalCluster | None) -> int:
    return _port(local.serve_url) if local else int(settings.SERVE_PORT.text())


def _port(url: str) -> int:
    return urlsplit(url).port or 80


def _through_api(named: Named) -> Iterator[Finding]:
    """What can be seen of a cluster through its Jobs API."""
    token = ray_token.find()
    bare = dashboard.ask(named.address)
    asks = bare is not None and bare.status in (401, 403)
    known = dashboard.ask(named.address, token.header) if asks and token else bare
    refusal = "" if bare else "nothing answers there"
    yield access.cluster(named.address, named.source, None, refusal)
    if bare is not None:
        accepted = known is not None and known.status == 200
        mode = os.environ.get("RAY_AUTH_MODE", "")
        yield access.authentication(mode, token, asks, accepted, named.host not in LOOPBACK)
        if known is not None and known.ray:
            yield software.cluster_ray(known.ray, software.installed_ray() or "none")
    yield nodes.unseen_flags()


def _as_driver(named: Named, home: Path) -> Iterator[Finding]:
    sight = _sight(named, home)
    nodes_seen = len(sight.nodes) + len(sight.silent)
    yield access.cluster(named.address, named.source, nodes_seen, sight.refusal)
    yield _authentication(named, sight)
    if not sight.nodes:
        yield nodes.unseen_flags()
        return
    yield nodes.flags(sight.nodes)
    yield nodes.packages(sight.nodes)
    yield nodes.devices(sight.nodes)
    yield nodes.tracing(sight.nodes)
    yield kept.shared(home, nodes_seen, [node.address for node in sight.nodes if not node.sees])
    if sight.silent:
        yield nodes.silent(sight.silent)


def _sight(named: Named, home: Path) -> Sight:
    if not named.address:
        return Sight()
    if ":" not in named.address or named.address.startswith("ray://"):
        return Sight(refusal="no address that Tidegate joins, which is host:port or http://host:port")
    if not cluster.listens(named.address):
        return Sight(refusal="nothing answers there")
    with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor-") as probe:
        return look(named.address, Path(probe.name))


def _authentication(named: Named, sight: Sight) -> Finding:
    token, mode = ray_token.find(), os.environ.get("RAY_AUTH_MODE", "")
    asks: bool | None = None
    accepted: bool | None = None
    if named.local:
        asks, mode = named.local.auth == "token", mode or named.local.auth
        known = dashboard.ask(named.local.dashboard_url, token.header if token else None)
        accepted = known.status == 200 if known else None
    elif sight.nodes:
        # Whoever joined was let in.
        asks, accepted = any(node.variables.get("RAY_AUTH_MODE") == "token" for node in sight.nodes), True
    return access.authentication(mode, token, asks, accepted, named.host not in LOOPBACK)
