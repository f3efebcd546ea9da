"""`tidegate doctor`: what is off on this machine and in the cluster, and what mends it."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

WRONG = 2
"""Exit code where something is wrong."""


@click.command(short_help="What is off here or in the cluster, and what mends it.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Look at Python, Ray, the cluster, its flags, ports, devices, storage: a line each, with what mends it.

    Needs no cluster. Takes half a minute where there is one: a process looks on each of its nodes.

    Exit code: 2 when something is wrong, else 0.
    """
    from tidegate.doctor import examine

    found = []
    for finding in examine.findings():
        found.append(finding)
        if not as_json:
            click.echo(finding.line())
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    if any(finding.state == "wrong" for finding in found):
        context.exit(WRONG)
