"""`tidegate predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tidegate.cli import complete

if TYPE_CHECKING:
    from tidegate.asking import Asking

PREVIEW_ROWS = 10


@click.command(short_help="Ask an endpoint about the rows of a file.")
@click.argument("endpoint", shell_complete=complete.endpoints)
@click.argument("rows")
@click.option(
    "-o",
    "--output",
    help="Where to write: .parquet, .csv or .jsonl, or - for JSON lines. Default: a few rows on the terminal.",
)
@click.option("--url", help="Where endpoints answer. Default: the local cluster.")
@click.option("--key", help="The key to ask with. Default: TIDEGATE_API_KEY, which no list of processes shows.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="The authority of the server's certificate, as PEM.")
@click.option(
    "--white", type=float, default=255.0, show_default=True, help="What a white pixel of an image is sent as."
)
def predict(
    endpoint: str, rows: str, output: str | None, url: str | None, key: str | None, ca_file: Path | None, white: float
) -> None:
    """Ask ENDPOINT about ROWS; what was read comes back with the answers.

    ROWS is a file (CSV, Parquet, JSON lines, JSON), a folder or a pattern of such files or of images, or - for JSON
    lines on standard input.
    """
    from tidegate import cluster, connection, tables
    from tidegate.asking import Asking
    from tidegate.client import Client
    from tidegate.errors import ClusterError
    from tidegate.model_inputs import InputReader
    from tidegate.rows import opened

    if url is None and connection.is_far():
        raise ClusterError("where the endpoints of that cluster answer is not known here", remedy="give it with --url")
    if output not in (None, "-"):
        tables.check_output(Path(output))
    source = opened(rows, sys.stdin.buffer)
    local = cluster.current()
    address = url or (local.serve_url if local else "http://127.0.0.1:8000")
    with Client(address, api_key=key, ca_file=ca_file) as client:
        signature = client.metadata(endpoint).signature
        whites = {spec.name: white for spec in signature.inputs}
        reader = InputReader(signature, source.columns, rows, whites)
        asking = Asking(client, endpoint, source, reader)
        for sentence in asking.renamed():
            click.echo(sentence, err=True)
        if output is None:
            _show(asking)
        else:
            _write(asking, output)


def _show(asking: Asking) -> None:
    import pyarrow as pa

    from tidegate import tables

    found = list(asking.answered(PREVIEW_ROWS + 1))
    if not found:
        click.echo("no rows")
        return
    table = pa.concat_tables([part.select(list(asking.outputs.values())) for part in found])
    click.echo(tables.preview(table.slice(0, PREVIEW_ROWS), table.column_names))
    if len(table) > PREVIEW_ROWS:
        click.echo("... and more rows; use -o to ask about all")


def _write(asking: Asking, output: str) -> None:
    from tidegate.cli.progress import Progress
    from tidegate.errors import DataError
    from tidegate.table_writer import JsonLines, writing

    rows = 0
    with Progress() as progress:
        if output == "-":
            writer = JsonLines(sys.stdout.buffer)
            for table in asking.answered():
                writer.write(table)
                progress.add(len(table))
            return
        with writing(Path(output)) as file:
            for table in asking.answered():
                file.write(table)
                progress.add(len(table))
                rows += len(table)
            if not rows:
                raise DataError("there are no rows", remedy="give a file that has some")
    click.echo(f"wrote {rows} rows to {output}")
