"""Writes rated sentences of film reviews as `movie_snippets.parquet`: 10,568 rows, two classes, in ten folds.

Columns: `text` string; `label` "positive" or "negative", the sign of the mean rating (37 rows rated 0 are dropped);
`fold` int64, 0 to 9, a hash of the normalised text, so that duplicates share a fold. With `--test-fold K` the file is
`movie_snippets-foldK.parquet` and has `split` too: fold K is `test`, the next one `validation`, the others `train`.

The sentences are a resource of the source distribution of vaderSentiment 3.3.2 (MIT), which is downloaded with pip,
checked against a digest and read, never installed.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from download import Download, parser, pip_download, provided
from parquet import write_atomically

from tidegate.errors import DataError

SDIST = Download(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
RESOURCE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
FOLDS = 10


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise DataError(f"{name} is not a file of the archive", expected=f"the files of {SDIST.package}")
    return member.read()


def read_snippets(sdist: Path) -> str:
    """The file of snippets: lines of identifier, mean rating and text, parted by tabs."""
    with tarfile.open(sdist) as outer, tarfile.open(fileobj=io.BytesIO(read_member(outer, RESOURCE))) as inner:
        return read_member(inner, SNIPPETS).decode("utf-8")


def parse(snippets: str) -> Iterator[tuple[str, str]]:
    """(text, label) of every line with a rating other than 0."""
    for line in snippets.splitlines():
        _, rating, text = line.split("\t")
        if float(rating) != 0:
            yield text.strip(), "positive" if float(rating) > 0 else "negative"


def fold_of(text: str) -> int:
    """0 to 9, the same for texts that differ only in case, punctuation and white space."""
    normalised = re.sub(r"[\W_]+", " ", text.lower()).strip()
    return int.from_bytes(hashlib.sha256(normalised.encode("utf-8")).digest(), "big") % FOLDS


def split_of(fold: int, test_fold: int) -> str:
    if fold == test_fold:
        return "test"
    return "validation" if fold == (test_fold + 1) % FOLDS else "train"


def snippets_table(rows: list[tuple[str, str]], test_fold: int | None = None) -> pa.Table:
    texts, labels = zip(*rows, strict=True)
    folds = [fold_of(text) for text in texts]
    columns = {"text": pa.array(texts), "label": pa.array(labels), "fold": pa.array(folds, pa.int64())}
    if test_fold is not None:
        columns["split"] = pa.array([split_of(fold, test_fold) for fold in folds])
    return pa.table(columns)


def provide(folder: Path, test_fold: int | None = None, cache: Path | None = None) -> Path:
    """Path of the Parquet file in `folder`, written unless it is there. `cache` (folder/downloads) keeps the source."""
    path = folder / ("movie_snippets.parquet" if test_fold is None else f"movie_snippets-fold{test_fold}.parquet")
    if not path.exists():
        rows = list(parse(read_snippets(pip_download(SDIST, cache or folder / "downloads"))))
        write_atomically(snippets_table(rows, test_fold), path)
    return path


def main() -> int:
    options = parser("Write the movie snippets as Parquet and print the file's path.")
    options.add_argument(
        "--test-fold", type=int, choices=range(FOLDS), help="add a split column that tests on this fold"
    )
    arguments = options.parse_args()
    return provided(lambda: provide(arguments.folder, arguments.test_fold, arguments.cache))


if __name__ == "__main__":
    sys.exit(main())
