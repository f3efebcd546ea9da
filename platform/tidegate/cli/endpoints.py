"""`tidegate deploy` and `endpoints`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from tidegate.cli import complete


@click.command(short_help="Deploy an endpoint, or move it to what its spec now says.")
@click.argument("what")
def deploy(what: str) -> None:
    """Deploy an endpoint, or move it to what its spec now says.

    WHAT is the file of an endpoint spec, or a version such as digits@production, which gets an endpoint of the model's
    name with one replica.
    """
    from tidegate.spec.endpoint import wanted

    endpoint = wanted(what)
    from tidegate import connection

    if connection.is_far():
        from tidegate import api

        status = api.deploy(endpoint).status
    else:
        from tidegate.serving import deploy as serving

        connection.connect()
        status = serving.deploy(endpoint, on_wait=click.echo)
    click.echo(f"{status.url}  serves version {status.version} of {endpoint.model}")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_context
def endpoints(context: click.Context, as_json: bool) -> None:
    """List endpoints; `remove` one."""
    if context.invoked_subcommand is not None:
        return
    from tidegate import api
    from tidegate.cli.table import table

    found = api.endpoints()
    if as_json:
        click.echo(json.dumps([asdict(endpoint) for endpoint in found], indent=1))
        return
    rows = [[e.name, e.status, e.model, e.version or "-", e.replicas, e.url, e.message] for e in found]
    table(
        ["endpoint", "status", "model", "version", "replicas", "url", ""],
        rows,
        empty="no endpoints yet: tidegate deploy SPEC",
    )


@endpoints.command()
@click.argument("name", shell_complete=complete.endpoints)
def remove(name: str) -> None:
    """Take an endpoint away. Its model versions stay."""
    from tidegate import api

    api.remove(name)
    click.echo(f"removed {name}")
