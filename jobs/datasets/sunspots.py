"""Writes windows of the yearly number of sunspots, 1700 to 2008, as `sunspots.parquet`.

Columns: `past`, a list of the 22 to 44 years before `year`; `future`, a list of 8 years from it on; `year` int64;
`split`: windows whose future lies in the last 60 years are `test` (every origin once, as the world rolls on), those in
the 30 years before `validation`, all earlier ones `train`. Windows whose future would reach into two are left out.

The series is a file of the wheel of statsmodels 0.15.0 (BSD), which is downloaded, checked against a digest and read,
never installed.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
from download import Download, parser, pip_download, provided
from parquet import write_atomically

WHEEL = Download(
    "statsmodels==0.15.0",
    "statsmodels-0.15.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "b67886b66d9c7ca118526accedb5c6de7ffd74c015dc0492ea0b1690192b65da",
)
MEMBER = "statsmodels/datasets/sunspots/sunspots.csv"
FEWEST, MOST, AHEAD = 22, 44, 8
TEST, VALIDATION = 60, 30


def read(wheel: Path) -> list[tuple[int, float]]:
    """(year, sunspots), in order."""
    with zipfile.ZipFile(wheel) as archive:
        rows = csv.reader(io.StringIO(archive.read(MEMBER).decode("utf-8")))
    next(rows)
    return [(int(float(year)), float(spots)) for year, spots in rows]


def split_of(start: int, count: int) -> str | None:
    """Where the window belongs whose future begins at place `start` of `count`; None where it reaches into two."""
    parts = [place >= count - TEST for place in (start, start + AHEAD - 1)]
    held = [place >= count - TEST - VALIDATION for place in (start, start + AHEAD - 1)]
    if len(set(parts)) > 1 or len(set(held)) > 1:
        return None
    return "test" if parts[0] else "validation" if held[0] else "train"


def windows(series: list[tuple[int, float]]) -> pa.Table:
    spots = [value for _, value in series]
    rows = [
        (spots[max(0, start - MOST) : start], spots[start : start + AHEAD], series[start][0], split)
        for start in range(FEWEST, len(series) - AHEAD + 1)
        if (split := split_of(start, len(series)))
    ]
    past, future, years, splits = (list(column) for column in zip(*rows, strict=True))
    return pa.table({"past": past, "future": future, "year": years, "split": splits})


def provide(folder: Path, cache: Path | None = None) -> Path:
    """Path of the Parquet file in `folder`, written unless it is there. `cache` (folder/downloads) keeps the wheel."""
    path = folder / "sunspots.parquet"
    if not path.exists():
        write_atomically(windows(read(pip_download(WHEEL, cache or folder / "downloads"))), path)
    return path


def main() -> int:
    arguments = parser("Write windows of sunspots by year as Parquet and print the path.").parse_args()
    return provided(lambda: provide(arguments.folder, arguments.cache))


if __name__ == "__main__":
    sys.exit(main())
