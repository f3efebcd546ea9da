"""`tidegate up`, `down`, `status`, `env`: the cluster."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

import click

from tidegate.cli import complete


@click.command()
@click.option("--cpus", type=click.IntRange(1), help="Logical CPUs. Default: the machine's, at least 8.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs. Default: those Ray finds.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Where endpoints answer.")
@click.option(
    "--auth",
    type=click.Choice(["token", "disabled"]),
    default="token",
    show_default=True,
    help="Ray's token authentication.",
)
def up(cpus: int | None, gpus: int | None, port: int, auth: str) -> None:
    """Start a cluster on this machine, and the endpoints it had."""
    from tidegate import cluster, connection

    if cluster.current() is None:
        click.echo("starting Ray ...")
    local = cluster.up(cpus=cpus, gpus=gpus, serve_port=port, auth=auth)
    connection.connect(local.address)
    from tidegate.scheduling import arbiter
    from tidegate.serving import deploy

    deploy.restore()
    arbiter.ensure()
    click.echo(f"Ray           {local.address} (authentication: {local.auth})")
    click.echo(f"dashboard     {local.dashboard_url}")
    click.echo(f"endpoints     {local.serve_url}/v2/models, gRPC at {local.grpc_address}")
    click.echo('for Ray\'s own commands in this shell: eval "$(tidegate env)"')


@click.command(short_help="Stop the cluster. Models, runs and endpoints are kept.")
def down() -> None:
    """Stop the cluster that `tidegate up` started. Models, runs and endpoints are kept."""
    from tidegate import cluster

    click.echo("stopped" if cluster.down() else "nothing to stop: no cluster was started by tidegate up")


@click.command(short_help="How the cluster stands, or a run.")
@click.argument("run", required=False, shell_complete=complete.runs)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def status(run: str | None, as_json: bool) -> None:
    """The cluster: where it is, what it has and what is free. With RUN: where that run is and what it has been through.

    A run is shown by what its driver says; without one, by what its last driver left and MLflow has recorded.
    """
    labelled, known = _run(run) if run else _cluster()
    if as_json:
        click.echo(json.dumps(known, indent=1))
        return
    for label, text in labelled:
        click.echo(f"{label:<13} {text}")


def _run(name: str) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    from tidegate import standing

    found = standing.one_run(name)
    version = standing.version_of(found)
    return standing.described(found, version), standing.facts(found) | {"version": version}


def _cluster() -> tuple[list[tuple[str, str]], dict[str, Any]]:
    from tidegate import connection

    connection.connect()
    import ray

    now = connection.status()
    living = [node for node in ray.nodes() if node["Alive"]]
    pages = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in living]
    labelled = [
        ("Ray", f"{now.address}, {now.nodes} {'node' if now.nodes == 1 else 'nodes'}"),
        ("dashboard", now.dashboard_url or "none"),
        *(
            (f"{name}s", f"{now.available.get(name, 0):g} of {now.total[name]:g} free")
            for name in ("CPU", "GPU")
            if now.total.get(name)
        ),
        ("serving", "yes" if now.serving else "no"),
        ("metrics", ", ".join(pages[:3]) + (f" and {len(pages) - 3} more" if pages[3:] else "")),
    ]
    return labelled, asdict(now) | {"metrics": pages}


@click.command(short_help="Shell lines that let `ray job submit` reach the cluster.")
def env() -> None:
    """Shell lines that let Ray's own commands (`ray job submit`) reach the cluster: eval "$(tidegate env)"."""
    from tidegate import cluster
    from tidegate.errors import ClusterError

    local = cluster.current()
    if local is None:
        raise ClusterError("no cluster was started on this machine", remedy="run `tidegate up`")
    for name, value in cluster.environment(local).items():
        click.echo(f"export {name}={shlex.quote(value)}")
