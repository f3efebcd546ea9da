"""Plain tables: readable on a terminal and by awk."""

from __future__ import annotations

from collections.abc import Sequence

import click


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print aligned columns, or `empty` when there are no rows."""
    if not rows:
        click.echo(empty)
        return
    cells = [[str(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
