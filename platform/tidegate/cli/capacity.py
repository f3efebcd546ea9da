"""`tidegate capacity`: who has the devices, who wants them, and why."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

WATCH_S = 2.0


@click.command()
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the devices over time as a PNG file.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def capacity(watch: bool, plot: Path | None, as_json: bool) -> None:
    """Who has the cluster's devices, who wants more, and why the last decisions were made.

    Rules are in capacity.yaml in the home directory (~/.tidegate), and read again when that file changes.
    """
    from tidegate import api

    while True:
        report = api.capacity_report()
        if plot is not None:
            report.plot(plot)
        if watch:
            click.clear()
        click.echo(json.dumps(asdict(report), indent=1) if as_json else report.explain())
        if not watch:
            return
        time.sleep(WATCH_S)
