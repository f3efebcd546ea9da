"""`tidegate train` and `tidegate runs`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
def train(spec: Path) -> None:
    """Train the model of a run spec: prepare, train, evaluate, register, publish.

    Exit code 3 means: registered, but evaluate.require was missed, so not published.
    """
    from tidegate.metrics import HEADLINES, text
    from tidegate.spec import run as run_spec

    loaded = run_spec.load(spec)
    from tidegate import api

    outcome = api.train(loaded).outcome()
    outcome.raise_if_missed()
    shown = loaded.evaluate.metrics or HEADLINES[loaded.task]
    measured = outcome.report.metrics
    summary = ", ".join(f"test {name} {text(measured[name])}" for name in shown if name in measured)
    click.echo(f"{outcome.version.ref}  {summary}  digest {outcome.version.digest[:12]}")


@click.command()
def runs() -> None:
    """Runs, newest first."""
    from tidegate import tracking
    from tidegate.cli.table import table

    rows = [[run.name, run.status, run.started[:19], _headline(run.metrics)] for run in tracking.runs()]
    table(["run", "status", "started (UTC)", "test"], rows, empty="no runs yet: tidegate train SPEC")


def _headline(metrics: dict[str, float]) -> str:
    named = [(name, metrics[f"test.{name}"]) for name in ("accuracy", "r2") if f"test.{name}" in metrics]
    return ", ".join(f"{name} {value:.4f}" for name, value in named)
