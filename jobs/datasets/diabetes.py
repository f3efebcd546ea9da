"""Writes scikit-learn's diabetes data as `diabetes.parquet`: 442 patients, a regression task.

Columns, all float64: `age sex bmi bp s1 s2 s3 s4 s5 s6`, each centred and scaled by scikit-learn to a sum of squares
of 1; `target`, the progression of the disease after a year, 25 to 346.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
from parquet import write_atomically

from tidegate import settings


def diabetes_table() -> pa.Table:
    """All rows in scikit-learn's order. Nothing is downloaded: the package holds the data."""
    from sklearn.datasets import load_diabetes

    diabetes = load_diabetes()
    columns = {name: pa.array(diabetes.data[:, index]) for index, name in enumerate(diabetes.feature_names)}
    return pa.table({**columns, "target": pa.array(diabetes.target)})


def provide(folder: Path) -> Path:
    """Path of the Parquet file in `folder`, written unless it is there."""
    path = folder / "diabetes.parquet"
    if not path.exists():
        write_atomically(diabetes_table(), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's diabetes as Parquet and print the file's path.")
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", nargs="?", default=settings.home() / "data")
    print(provide(parser.parse_args().folder))


if __name__ == "__main__":
    main()
