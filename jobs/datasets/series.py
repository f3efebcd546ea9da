"""Writes two data sets of the time series archives, `japanese_vowels.parquet` and `italy_power_demand.parquet`.

Columns: `series`, a list of numbers (electricity demand, 24 hours) or of 12 numbers a step (speech, 7 to 29 steps);
`label`, season "1" or "2", speaker "1" to "9"; `split`: `test` is the archive's own, and every tenth row of a class in
its training part is `validation`.

They are files of the wheel of aeon 1.6.0 (BSD), which is downloaded, checked against a digest and read, never
installed.
"""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from download import Download, parser, pip_download, provided
from parquet import write_atomically

WHEEL = Download(
    "aeon==1.6.0", "aeon-1.6.0-py3-none-any.whl", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"
)
NAMES = {"japanese_vowels": "JapaneseVowels", "italy_power_demand": "ItalyPowerDemand"}
VALIDATION = 10


def read(wheel: Path, name: str, part: str) -> Iterator[tuple[list[Any], str]]:
    """(series, label) of each line of a `.ts` file: channels parted by colons, and the label after the last one."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"aeon/datasets/data/{name}/{name}_{part}.ts").decode("utf-8")
    lines = (line.strip() for line in text.splitlines())
    for line in lines:
        if line and line[0] not in "#@":
            *channels, label = line.split(":")
            numbers = [[float(number) for number in channel.split(",")] for channel in channels]
            yield numbers[0] if len(numbers) == 1 else [list(step) for step in zip(*numbers, strict=True)], label


def table(wheel: Path, name: str) -> pa.Table:
    rows = [(series, label, "train") for series, label in read(wheel, name, "TRAIN")]
    seen: Counter[str] = Counter()
    for place, (series, label, _) in enumerate(rows):
        seen[label] += 1
        if seen[label] % VALIDATION == 0:
            rows[place] = (series, label, "validation")
    rows += [(series, label, "test") for series, label in read(wheel, name, "TEST")]
    series, labels, splits = zip(*rows, strict=True)
    return pa.table({"series": pa.array(series), "label": pa.array(labels), "split": pa.array(splits)})


def provide(folder: Path, cache: Path | None = None) -> list[Path]:
    """Paths of the Parquet files in `folder`, written unless they are there; `cache` keeps the wheel."""
    paths = {folder / f"{own}.parquet": name for own, name in NAMES.items()}
    for path, name in paths.items():
        if not path.exists():
            write_atomically(table(pip_download(WHEEL, cache or folder / "downloads"), name), path)
    return list(paths)


def main() -> int:
    arguments = parser("Write two data sets of time series as Parquet and print the paths.").parse_args()
    return provided(lambda: provide(arguments.folder, arguments.cache))


if __name__ == "__main__":
    sys.exit(main())
