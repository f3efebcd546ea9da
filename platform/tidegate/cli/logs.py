"""`tidegate logs`: what a run told its person, and where its processes' own logs are."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from tidegate.cli import complete

LOOK_EVERY_S = 0.5
ASK_EVERY_S = 5.0
"""How often the cluster is asked whether the run goes on."""
STARTS_WITHIN_S = 120.0
"""A run that was just submitted is recorded when its driver begins."""


@click.command(short_help="What a run told, and where its processes log.")
@click.argument("run", shell_complete=complete.runs)
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends. Ctrl-C leaves the run as it is.")
def logs(run: str, follow: bool) -> None:
    """What a RUN told: its lines, with their times (UTC). They are in runs/RUN/log.txt of the home directory.

    Where its driver and its workers write their own output is told at the end, on standard error.
    """
    from tidegate import settings, told, tracking

    folder = settings.home() / "runs" / run
    if not follow and not told.text(folder):
        tracking.run(run)  # says which runs there are
    try:
        if follow:
            for piece in told.follow(folder, _asked_now_and_then(run), lambda: time.sleep(LOOK_EVERY_S)):
                click.echo(piece, nl=False)
        else:
            click.echo(told.text(folder), nl=False)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(told.left_alone(run)) from None
    carrier = told.Carrier.read(folder)
    for label, what in carrier.described() if carrier else []:
        click.echo(f"{label:<13} {what}", err=True)


def _asked_now_and_then(run: str) -> Callable[[], bool]:
    """Whether the run is over, as it was known at most a few seconds ago."""
    from tidegate import standing, tracking

    began, asked, over = time.monotonic(), float("-inf"), False

    def is_over() -> bool:
        nonlocal asked, over
        now = time.monotonic()
        if over or now - asked < ASK_EVERY_S:
            return over
        asked = now
        if tracking.find_run(run) is None and now - began < STARTS_WITHIN_S:
            _refuse_ended(run)
            return False
        over = standing.is_over(run)
        return over

    return is_over


def _refuse_ended(run: str) -> None:
    """Raise ClusterError when a run that nobody recorded was submitted as a job, and that has ended."""
    from tidegate import connection
    from tidegate.errors import ClusterError

    try:
        why = connection.jobs().why_ended(run)
    except ClusterError:
        return  # nobody to ask
    if why:
        raise ClusterError(f"run {run} did not begin: {why}", remedy=f"train it again with --name {run}")
