"""`tidegate train`, `runs`, and what a person asks of a run: `resize`, `pause`, `resume`, `stop`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate.cli import complete

if TYPE_CHECKING:
    from tidegate.handle import Run
    from tidegate.standing import Standing
    from tidegate.training.progress import News

BY_WHOM = "by a person"
SHOWN_AFTER_S = 2.0
"""Shorter waits pass without a word."""
LOOK_EVERY_S = 0.2
SETTLED_S = 10.0
"""A run that was asked for another size and could have it would have begun to change by then."""
ENDED_WITHIN_S = 30.0
"""How long a driver takes, at most, to record the end of its run after training has ended."""

Look = Callable[["News | None"], str | None]


@click.command(short_help="Train a model: prepare, train, evaluate, register, publish.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--name",
    metavar="RUN",
    help="The run's name. A run of that name that has not finished goes on from its last checkpoint. "
    "Default: the spec's name and a suffix.",
)
@click.option(
    "--follow/--detach",
    default=True,
    help="Be the run's driver and print what it tells, or let a job on the cluster be its driver and return at once.",
)
def train(spec: Path, name: str | None, follow: bool) -> None:
    """Train the model of a run spec: prepare, train, evaluate, register, publish.

    While it runs: tidegate status, logs, resize, pause and stop, from any other terminal. Ctrl-C stops it at a
    checkpoint, a second one at once. On a cluster whose address is http:// the driver is always a job there, and
    Ctrl-C only ends looking at it.

    Exit codes: 3 registered, but evaluate.require was missed, so not published; 4 stopped, and can be resumed.
    """
    from tidegate import connection
    from tidegate.spec import document
    from tidegate.spec import run as run_spec

    # Mistakes show before anything heavy is loaded. Another machine has variables of its own.
    known = document.read(run_spec.Spec, spec) if connection.is_far() else run_spec.load(spec)
    from tidegate import api

    run = api.train(spec if connection.is_far() else known, name=name, follow=follow, detach=not follow)
    if follow:
        _tell_outcome(run)
        return
    click.echo(f"{run.name} goes on by itself: tidegate logs {run.name} --follow, tidegate status {run.name}", err=True)
    click.echo(run.name)


def _tell_outcome(run: Run) -> None:
    from tidegate.metrics import HEADLINES, text

    outcome = run.outcome()
    outcome.raise_if_missed()
    shown = run.spec.evaluate.metrics or HEADLINES[run.spec.task]
    measured = outcome.report.metrics
    summary = ", ".join(f"test {name} {text(measured[name])}" for name in shown if name in measured)
    click.echo(f"{outcome.version.ref}  {summary}  digest {outcome.version.digest[:12]}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="All that is known of each run, as JSON.")
def runs(as_json: bool) -> None:
    """Runs, newest first.

    A run whose driver is gone is interrupted; `tidegate resume RUN` goes on with it. `running?` is a run that is
    recorded as running where no cluster answers that could tell whether it is.
    """
    from tidegate import standing
    from tidegate.cli.table import table

    found = standing.all_runs()
    if as_json:
        click.echo(json.dumps([standing.facts(one) for one in found], indent=1))
        return
    heads = ["run", "status", "step", "samples/s", "started (UTC)", "test"]
    table(heads, [_row(one) for one in found], empty="no runs yet: tidegate train SPEC")
    for why in {one.unasked for one in found if one.status == standing.UNKNOWN}:
        click.echo(f"{standing.UNKNOWN} could not be checked: {why}", err=True)


def _row(one: Standing) -> list[str]:
    from tidegate import standing

    known = standing.facts(one)
    step = "-" if known["step"] is None else f"{known['step']}/{known['total_steps']}"
    speed = "-" if known["samples_per_s"] is None else f"{known['samples_per_s']:,.0f}"
    headline = [(name, one.test_metrics[name]) for name in ("accuracy", "r2") if name in one.test_metrics]
    measured = ", ".join(f"{name} {value:.4f}" for name, value in headline)
    return [one.record.name, standing.short(one), step, speed, one.record.started[:19], measured]


@click.command(short_help="Change the number of workers of a run that trains.")
@click.argument("run", shell_complete=complete.runs)
@click.argument("workers", type=click.IntRange(1))
@click.option("--wait", is_flag=True, help="Return when the run trains at that size, or there is no more room.")
def resize(run: str, workers: int, wait: bool) -> None:
    """Change the number of WORKERS of a RUN that trains. The model is the same whatever their number.

    The run finishes its step, writes a checkpoint and goes on with that many workers, or as many of them as there is
    room for; no step is computed twice. The number stays within train.workers of the run's spec.
    """
    from tidegate import connection
    from tidegate.training import control
    from tidegate.training.progress import counted

    connection.connect()
    before = control.status(run)
    control.resize(run, workers, why=BY_WHOM)
    has = before.progress.workers if before else 0
    now = f"has {has}" if has else before.phase if before else "starting"
    click.echo(f"{run} is asked for {counted(workers, 'worker')} ({now})")
    if wait:
        click.echo(_await(run, Resized(run, workers)))


@click.command(short_help="Let a run write a checkpoint and give its workers back.")
@click.argument("run", shell_complete=complete.runs)
@click.option("--wait", is_flag=True, help="Return when the run is paused.")
def pause(run: str, wait: bool) -> None:
    """Let a RUN write a checkpoint and give its workers back. Nothing is lost; `tidegate resume RUN` goes on.

    Its driver (the `tidegate train` or the job) stays and waits. To end that too: tidegate stop RUN.
    """
    from tidegate import connection
    from tidegate.training import control

    connection.connect()
    before = control.status(run)
    control.pause(run, why=BY_WHOM)
    how = "is paused" if before and before.phase == "paused" else "pauses at a checkpoint"
    click.echo(f"{run} {how}; tidegate resume {run} goes on with it")
    if wait:
        click.echo(_await(run, lambda news: paused(run, news)))


@click.command(short_help="Go on with a run that is paused, or whose driver is gone.")
@click.argument("run", shell_complete=complete.runs)
def resume(run: str) -> None:
    """Go on with a RUN that is paused, or whose driver is gone.

    A paused run goes on where its driver is. A run that was stopped, interrupted or failed has no driver any more: this
    command becomes its driver, goes on from the last checkpoint and prints what `tidegate train` prints. A run that
    was trained with a loop of your own goes on with tidegate.train(spec, loop=..., name=RUN) in Python.
    """
    from tidegate import connection, tracking
    from tidegate.errors import ConflictError

    if tracking.run(run).status == "finished":
        raise ConflictError(f"run {run} has finished", remedy=f"see `tidegate status {run}`, or train a new run")
    connection.connect()
    from tidegate.training import control

    news = control.status(run)
    if news is None:
        _drive(run)
    elif news.phase in ("paused", "pausing"):
        control.resume(run)
        click.echo(f"{run} goes on" + (" when it has paused" if news.phase == "pausing" else ""))
    else:
        from tidegate.console import live

        click.echo(f"{run} is not paused: {live(news)}")


def _drive(run: str) -> None:
    from tidegate import api, lifecycle

    _tell_outcome(api.train(lifecycle.stored_spec(run), name=run))


@click.command(short_help="Let a run write a checkpoint and end.")
@click.argument("run", shell_complete=complete.runs)
@click.option("--wait", is_flag=True, help="Return when the run has ended.")
def stop(run: str, wait: bool) -> None:
    """Let a RUN write a checkpoint and end. Nothing is lost; `tidegate resume RUN` goes on with it."""
    from tidegate import connection
    from tidegate.training import control

    connection.connect()
    control.stop(run, why=BY_WHOM)
    click.echo(f"{run} stops at a checkpoint; tidegate resume {run} goes on with it")
    if wait:
        click.echo(_await(run, lambda news: "" if news is None else None) or _how_it_ended(run))


def _await(run: str, look: Look) -> str:
    """Look at the run until `look` has something to say of it. What it is at meanwhile is told, if that takes long."""
    from tidegate.console import live
    from tidegate.training import control

    began, told = time.monotonic(), None
    while True:
        news = control.status(run)
        answer = look(news)
        if answer is not None:
            return answer
        if news and news.phase != told and time.monotonic() - began > SHOWN_AFTER_S:
            told = news.phase
            click.echo(live(news))
        time.sleep(LOOK_EVERY_S)


class Resized:
    """Says when a run trains with so many workers, or why it will not."""

    def __init__(self, run: str, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.workers, self._clock = run, workers, clock
        self._size, self._since = 0, 0.0

    def __call__(self, news: News | None) -> str | None:
        from tidegate.training.progress import counted

        if news is None or news.phase in ("stopping", "finishing"):
            return f"{self.run} ended first"
        if news.wanted != self.workers:
            return f"{self.run} has been asked for {counted(news.wanted or news.bounds[1], 'worker')} since"
        if news.phase in ("paused", "pausing"):
            return f"{self.run} is paused; it takes up to {counted(self.workers, 'worker')} when it goes on"
        size = news.progress.workers if news.phase == "training" else 0
        if size == self.workers:
            return f"{self.run} trains with {counted(size, 'worker')}"
        if size != self._size or not size:
            self._size, self._since = size, self._clock()
        elif size < self.workers and self._clock() - self._since > SETTLED_S:
            return f"{self.run} trains with {counted(size, 'worker')}: there is no room for more yet"
        return None


def paused(run: str, news: News | None) -> str | None:
    """Says when a run is paused, or why it will not be."""
    if news is None or news.phase in ("stopping", "finishing"):
        return f"{run} ended first"
    if news.phase == "pausing":
        return None
    if news.phase == "paused":
        return f"{run} is paused at step {news.progress.step}"
    return f"{run} was resumed meanwhile"


def _how_it_ended(run: str) -> str:
    """What the driver recorded; it does so a moment after training has ended."""
    from tidegate import standing

    until = time.monotonic() + ENDED_WITHIN_S
    while (found := standing.one_run(run)).status not in standing.ENDED.values() and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
    if found.status != "stopped":
        return f"{run} was not stopped: {found.status}"
    return f"{run} is stopped" + (f" at step {found.progress.step}" if found.progress else "")
