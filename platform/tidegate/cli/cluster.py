"""`tidegate up`, `down`, `status`, `env`: the cluster."""

from __future__ import annotations

import shlex

import click


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
    from tidegate.serving import deploy

    deploy.restore()
    click.echo(f"Ray           {local.address} (authentication: {local.auth})")
    click.echo(f"dashboard     {local.dashboard_url}")
    click.echo(f"endpoints     {local.serve_url}/v2/models")
    click.echo('for Ray\'s own commands in this shell: eval "$(tidegate env)"')


@click.command()
def down() -> None:
    """Stop the cluster that `tidegate up` started. Models, runs and endpoints are kept."""
    from tidegate import cluster

    click.echo("stopped" if cluster.down() else "nothing to stop: no cluster was started by tidegate up")


@click.command()
def status() -> None:
    """The cluster: where it is, what it has and what is free."""
    from tidegate import connection

    connection.connect()
    now = connection.status()
    click.echo(f"Ray           {now.address}, {now.nodes} {'node' if now.nodes == 1 else 'nodes'}")
    click.echo(f"dashboard     {now.dashboard_url or 'none'}")
    for name in ("CPU", "GPU"):
        if now.total.get(name):
            click.echo(f"{name}s          {now.available.get(name, 0):g} of {now.total[name]:g} free")
    click.echo(f"serving       {'yes' if now.serving else 'no'}")


@click.command()
def env() -> None:
    """Shell lines that let Ray's own commands (`ray job submit`) reach the cluster: eval "$(tidegate env)"."""
    from tidegate import cluster
    from tidegate.errors import ClusterError

    local = cluster.current()
    if local is None:
        raise ClusterError("no cluster was started on this machine", remedy="run `tidegate up`")
    for name, value in cluster.environment(local).items():
        click.echo(f"export {name}={shlex.quote(value)}")
