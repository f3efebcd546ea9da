"""Writes scikit-learn's handwritten digits as `digits.parquet`: 1,797 images of 8x8 pixels in ten classes.

Columns: `pixels` float32[64], row-major, 0 (white) to 16 (black); `label` int64, 0 to 9.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
from parquet import write_atomically

from tidegate import settings


def digits_table() -> pa.Table:
    """All rows in scikit-learn's order. Nothing is downloaded: the package holds the data."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = pa.array(digits.data.astype(np.float32).ravel())
    return pa.table(
        {
            "pixels": pa.FixedSizeListArray.from_arrays(pixels, digits.data.shape[1]),
            "label": pa.array(digits.target.astype(np.int64)),
        }
    )


def provide(folder: Path) -> Path:
    """Path of the Parquet file in `folder`, written unless it is there."""
    path = folder / "digits.parquet"
    if not path.exists():
        write_atomically(digits_table(), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as Parquet and print the file's path.")
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", nargs="?", default=settings.home() / "data")
    print(provide(parser.parse_args().folder))


if __name__ == "__main__":
    main()
