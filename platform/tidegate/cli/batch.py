"""`tidegate batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(short_help="Ask a model version about all rows of a source.")
@click.argument("model")
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="How many copies of the model.")
@click.option(
    "--gpu", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs of each; also a part of one."
)
@click.option(
    "--invalid",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What a row that the model refuses does: end the run, or get no answers and a reason.",
)
@click.option("--batch-rows", type=click.IntRange(1), default=64, show_default=True, help="Rows of a pass.")
@click.option(
    "--part-rows", type=click.IntRange(1), default=20_000, show_default=True, help="Rows of a file that is written."
)
@click.option(
    "--white", type=float, default=255.0, show_default=True, help="What a white pixel is to a registered model."
)
def batch(model: str, source: str, **options: Any) -> None:
    """Ask MODEL, a version such as digits@3 or digits@production, about all rows of SOURCE.

    SOURCE is a file, a folder or a pattern: CSV, Parquet, JSON lines, images, sounds or texts. The answers are Parquet
    files in a folder, beside what was read; manifest.json is there when all of them are. The same command goes on after
    a kill.
    """
    from tidegate import api
    from tidegate.cli.progress import Progress
    from tidegate.training.progress import counted

    with Progress() as progress:
        done = api.predict_batch(model, source, say=click.echo, on_progress=progress.reach, **options)
    refused = f", {done.refused} of them refused" if done.refused else ""
    click.echo(f"wrote {counted(done.rows, 'row')}{refused} to {done.folder}, {counted(len(done.parts), 'part')}")
