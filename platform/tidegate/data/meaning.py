"""What a column of a sample seems to mean: the keys that a spec would give it, or why it is left out."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tidegate.transforms.arrow import files, is_binary, is_list, nested_shape
from tidegate.transforms.audio import UNTOLD
from tidegate.transforms.base import Array, fits, shortened
from tidegate.transforms.category import to_labels
from tidegate.transforms.image import LYING, orientation
from tidegate.transforms.number import GAPS, to_numbers

NAME = re.compile(r"([^_]|_[^_]).*", re.DOTALL)
DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ].*)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}( .*)?|\d{4}/\d{1,2}/\d{1,2}( .*)?")
A_NAME = "a column needs a name of 1 to 256 characters that does not begin with two underscores"
KEY_NAME = re.compile(r"(^|[_ .-])(id|key|index|uuid|guid|no|nr)$|^unnamed: \d+$", re.IGNORECASE)
CLASS_NAMES = ("label", "target", "class", "category", "species", "kind", "type")
PIXEL_NAMES = ("pixels", "pixel", "image", "images", "img")
NEARLY_ALL = 0.95
FEWEST_FOR_A_KEY = 10
MOST_CATEGORIES = 1000
WORDS_OF_TEXT, WORDS_OF_PROSE = 3, 8
"""Words a row from which strings are text, and from which they are what the table is about."""
LONGEST_SIDE = 64
LENGTHS = (16, 32, 64, 128, 256, 512)
IMAGES_LOOKED_AT = SOUNDS_LOOKED_AT = 100
SOUND = re.compile(rb"RIFF.{4}WAVE|fLaC|OggS|ID3|\xff[\xe2-\xfb]", re.DOTALL)
"""How WAV, FLAC, OGG and MP3 begin."""
MOST_SIGNS, LETTERS_OF_A_SIGN, LONGEST_SPELLED = 250, 3, 128
"""A text is a sequence of signs (phonemes, notes) when it has few different and short words; up to so many letters it
is spelled."""


@dataclass(frozen=True)
class Meaning:
    """`keys` are those of the input in a spec; empty when the column is left out, and `note` says why."""

    note: str
    keys: dict[str, Any] = field(default_factory=dict)
    is_last_resort: bool = False
    """Left out, for it looks like a key or like the target, but could be used where there is nothing else."""
    is_prose: bool = False

    @property
    def type(self) -> str:
        return str(self.keys.get("type", ""))


def meaning(name: str, column: pa.Array) -> Meaning:
    """What a column seems to mean as an input."""
    if not _is_name(name):
        return Meaning(A_NAME)
    column = _plain(column)
    kind = column.type
    known = column.drop_null()
    if not len(known):
        return Meaning("no value in any row")
    if pa.types.is_temporal(kind):
        return Meaning("dates and times are no inputs; derive numbers from them")
    if is_binary(kind):
        return _encoded_sounds(known) or _encoded_images(known)
    if is_list(kind):
        return _lists(name, column, known)
    if pa.types.is_struct(kind) and {"array", "sampling_rate"} <= set(kind.names):
        return _sampled_sounds(known)
    if pa.types.is_boolean(kind):
        return _category(column, known)
    if _is_number(kind):
        return _number(name, column)
    if pa.types.is_string(kind):
        return _strings(name, column, known)
    return Meaning(f"values of type {kind} are no inputs")


@dataclass(frozen=True)
class Aim:
    """What a column seems to mean as the target; `problem` says why it cannot be one."""

    type: Literal["category", "number", "text"]
    note: str
    problem: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    """Of a text: how it is cut."""


def aim(name: str, column: pa.Array) -> Aim:
    """What a column seems to mean as the target."""
    column = _plain(column)
    known = column.drop_null()
    if not _is_name(name):
        return Aim("category", "", f"is no name of a column: {A_NAME}")
    if not len(known):
        return Aim("category", "", "holds no value")
    if not (_is_number(column.type) or pa.types.is_string(column.type) or pa.types.is_boolean(column.type)):
        return Aim("category", "", f"holds values of type {column.type}, neither numbers nor classes")
    if pa.types.is_string(column.type) and _are_dates(known.to_pylist()):
        return Aim("category", "", "holds dates, neither numbers nor classes")
    numbers = _numbers(column)
    if numbers is not None and not pa.types.is_boolean(column.type):
        finite = numbers[np.isfinite(numbers)]
        distinct = len(np.unique(finite))
        if distinct < 2:
            return Aim("number", "", f"holds {_only(known)}; a target needs at least two values")
        most = MOST_CATEGORIES if name.lower() in CLASS_NAMES else 20
        if (finite % 1 != 0).any() or distinct > max(2, min(most, len(finite) // 5)):
            return Aim("number", f"{finite.min():g} to {finite.max():g}")
    labels, found = to_labels(column)
    counts = Counter(labels.filter(pa.array(fits(found))).to_pylist())
    if len(counts) < 2:
        return Aim("category", "", f"holds {_only(known)}; a classifier needs at least two classes")
    if len(counts) > max(20, len(known) // 2) or len(counts) > MOST_CATEGORIES:
        return Aim(
            "category", "", f"holds {len(counts)} different values in {len(known)} rows, neither numbers nor classes"
        )
    shown = ", ".join(f"{_words(value)} ({count})" for value, count in counts.most_common(5))
    return Aim("category", f"{len(counts)} classes: {shown}" + (", ..." if len(counts) > 5 else ""))


def aim_to_write(column: pa.Array) -> Aim | None:
    """What a column of texts means as a target to be written; None for a column of something else."""
    values = _plain(column).drop_null()
    if not pa.types.is_string(values.type) or not len(values):
        return None
    keys, note = cut(values.to_pylist())
    return Aim("text", f"texts of {note}", keys=keys)


def cut(values: list[str], words_of: Callable[[str], list[str]] = str.split) -> tuple[dict[str, Any], str]:
    """How texts are best cut into tokens, where those of words are `words_of`: the keys, and how long they are."""
    rows = [words_of(value) for value in values]
    words, letters = max(map(len, rows)), max(map(len, values))
    different = {word for row in rows for word in row}
    if words > 1 and len(different) <= MOST_SIGNS and sum(map(len, different)) <= LETTERS_OF_A_SIGN * len(different):
        kind, longest = "word", words
    elif letters <= LONGEST_SPELLED:
        kind, longest = "character", letters
    else:
        # Pieces of bytes, of which a letter that is not Latin has two or three.
        kind, longest = "bpe", max(len(value.encode()) for value in values) // 2
    room = next((limit for limit in LENGTHS if limit >= 1.2 * longest), 2 * longest)
    return {"tokenizer": kind, "max_length": room}, f"up to {words} word{'s' * (words != 1)} and {letters} letters"


def _is_name(name: str) -> bool:
    return len(name) <= 256 and NAME.fullmatch(name) is not None


def _are_dates(values: list[str]) -> bool:
    return sum(bool(DATE.fullmatch(value.strip())) for value in values) >= NEARLY_ALL * len(values)


def _only(known: pa.Array) -> str:
    return f"only the value {shortened(repr(known[0].as_py()))}"


def says_the_same(column: pa.Array, target: pa.Array) -> bool:
    """Whether each value of a column goes with one class and each class with one value: an input would give it away."""
    column = _plain(column)
    if pa.types.is_nested(column.type):
        return False
    both = list(zip(column.to_pylist(), _plain(target).to_pylist(), strict=True))
    pairs = set(both)
    ways = len({value for value, _ in pairs}), len({label for _, label in pairs})
    return 2 <= len(pairs) == ways[0] == ways[1] <= len(both) // 5


def _plain(column: pa.Array) -> pa.Array:
    """Without dictionaries, structs about files and other ways to store the same values."""
    column = files(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _numbers(column: pa.Array) -> Array | None:
    """float64 `[rows]`, NaN where missing; None unless nearly all values are numbers, and not written like codes."""
    if pa.types.is_string(column.type):
        texts = [text.strip() for text in column.drop_null().to_pylist()]
        if any(re.fullmatch(r"0\d+", text) for text in texts):
            return None
        known = sum(text.lower() not in GAPS for text in texts)
    else:
        known = len(column) - column.null_count
    values, found = to_numbers(column, 1)
    return values[:, 0] if known and (~fits(found)).sum() <= (1 - NEARLY_ALL) * known else None


def _number(name: str, column: pa.Array) -> Meaning:
    values = _numbers(column)
    assert values is not None
    finite = values[np.isfinite(values)]
    missing = int(np.isnan(values).sum())
    distinct = np.unique(finite)
    if len(distinct) < 2:
        return Meaning("the same value in every row" if len(distinct) else "no number in any row")
    keys: dict[str, Any] = {"type": "number"} | ({"missing": "mean"} if missing else {})
    note = f"{distinct[0]:g} to {distinct[-1]:g}" + (f"; {missing} missing" if missing else "")
    is_unique = len(distinct) == len(values) >= FEWEST_FOR_A_KEY and bool((distinct % 1 == 0).all())
    if is_unique and (KEY_NAME.search(name) or _rises(values) or len(values) >= 100):
        return Meaning(f"another whole number in every row, as a key has: {note}", keys, is_last_resort=True)
    return Meaning(note, keys)


def _rises(values: Array) -> bool:
    return bool((np.diff(values) == 1).all())


def _strings(name: str, column: pa.Array, known: pa.Array) -> Meaning:
    if _numbers(column) is not None:
        return _number(name, column)
    values = known.to_pylist()
    if _are_dates(values):
        return Meaning("dates and times are no inputs; derive numbers from them")
    distinct = len(set(values))
    words = sum(len(value.split()) for value in values) / len(values)
    if distinct > max(20, len(values) // 2) and (words >= WORDS_OF_TEXT or _is_unspaced(values)):
        return text(values)
    if distinct == len(values) >= FEWEST_FOR_A_KEY:
        return Meaning("another value in every row, as a key has")
    if distinct > min(MOST_CATEGORIES, max(20, len(values) // 10)):
        return Meaning(f"{distinct} different values in {len(values)} rows are too many for a category")
    return _category(column, known)


def _category(column: pa.Array, known: pa.Array) -> Meaning:
    labels, _ = to_labels(known)
    counts = Counter(labels.to_pylist())
    if len(counts) == 1:
        return Meaning("the same value in every row")
    missing = len(column) - len(known)
    keys = {"type": "category", "unknown": "bucket"} | ({"missing": "empty"} if missing else {})
    shown = ", ".join(_words(value) for value, _ in counts.most_common(3)) + (", ..." if len(counts) > 3 else "")
    return Meaning(f"{len(counts)} values: {shown}" + (f"; {missing} missing" if missing else ""), keys)


def words_read(value: str) -> list[str]:
    """The words of a text that is an input, as its tokenizer `word` cuts them."""
    return re.findall(r"\w+|[^\w\s]+", value)


def text(values: list[str]) -> Meaning:
    """What strings mean as text."""
    words = sorted(len(words_read(value)) for value in values)
    long = words[int(0.95 * (len(words) - 1))]
    unspaced = _is_unspaced(values)
    if unspaced:
        long = max(len(value) for value in values)
    length = next((limit for limit in LENGTHS if limit >= long), LENGTHS[-1])
    keys = {"type": "text", "tokenizer": "bpe" if unspaced else "word", "vocab_size": 8000, "max_length": length}
    middle = words[len(words) // 2]
    return Meaning(f"text of about {middle} words a row", keys, is_prose=middle >= WORDS_OF_PROSE or unspaced)


def _is_unspaced(values: list[str]) -> bool:
    """Whether these are texts of a script that puts no blanks between words."""
    signs = "".join(values[:100])
    return len(signs) >= 10 * len(values[:100]) and sum(ord(sign) > 0x2E7F for sign in signs) > len(signs) / 3


def _lists(name: str, column: pa.Array, known: pa.Array) -> Meaning:
    shapes = Counter(nested_shape(value) for value in known.to_pylist())
    shape, count = shapes.most_common(1)[0]
    if count < NEARLY_ALL * len(known) or 0 in shape:
        return _series(known.to_pylist())
    flat = [np.asarray(value, dtype=object).reshape(-1) for value in known.to_pylist() if nested_shape(value) == shape]
    numbers = np.asarray([_float(item) for row in flat for item in row])
    if not np.isfinite(numbers).any():
        return Meaning("lists of something that is no number")
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    sides = _sides(name, shape)
    if sides and low >= 0:
        top = next((limit for limit in (1, 16, 255) if limit >= high), 0)
        if top:
            height, width, channels = sides
            keys: dict[str, Any] = {"type": "image", "size": [height, width], "channels": channels, "max_value": top}
            return Meaning(f"{height} x {width} numbers, {low:g} to {high:g}", keys)
    if len(shape) > 1:
        return Meaning("nested lists that are no images of pixels from 0 to 1, 16 or 255")
    gaps = {"missing": "mean"} if np.isnan(numbers).any() else {}
    return Meaning(f"lists of {shape[0]} numbers, {low:g} to {high:g}", {"type": "number", "length": shape[0]} | gaps)


def _series(values: list[Any]) -> Meaning:
    """What lists of different lengths mean: steps of one or several numbers."""
    rows = []
    for value in values:
        try:
            rows.append(np.asarray(value, np.float64))
        except (TypeError, ValueError):
            continue
    fitting = [row for row in rows if row.size and np.isfinite(row).all()]
    inner = {row.shape[1:] for row in fitting}
    if len(fitting) < NEARLY_ALL * len(values) or len(inner) != 1 or fitting[0].ndim > 2:
        return Meaning("lists of different lengths that are no series of numbers")
    lengths = [len(row) for row in fitting]
    longest = next((limit for limit in LENGTHS if limit >= max(lengths)), 2 * max(lengths))
    channels = math.prod(fitting[0].shape[1:])
    keys: dict[str, Any] = {"type": "series", "max_length": longest} | ({"channels": channels} if channels > 1 else {})
    return Meaning(f"series of {min(lengths)} to {max(lengths)} steps of {channels}", keys)


def _sides(name: str, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Height, width and channels of lists that are images."""
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape[0], shape[1], shape[2]
    if len(shape) == 2:
        return shape[0], shape[1], 1
    side = math.isqrt(shape[0])
    return (side, side, 1) if len(shape) == 1 and name.lower() in PIXEL_NAMES and side * side == shape[0] > 1 else None


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _encoded_sounds(known: pa.Array) -> Meaning | None:
    """None for bytes that are no sounds."""
    some = known.to_pylist()[:: max(1, len(known) // SOUNDS_LOOKED_AT)]
    if sum(bool(SOUND.match(item)) for item in some) < NEARLY_ALL * len(some):
        return None
    try:
        import soundfile
    except (ImportError, OSError):
        return Meaning("sounds, which need pip install 'tidegate[audio]'")
    seconds = []
    for item in some:
        try:
            info = soundfile.info(io.BytesIO(item))
            if info.frames < UNTOLD:
                seconds.append(info.frames / info.samplerate)
        except (soundfile.LibsndfileError, RuntimeError, TypeError):
            continue
    if len(seconds) < NEARLY_ALL * len(some):
        return Meaning("bytes that are no WAV, FLAC, OGG or MP3 sound that tells its length")
    return _sounds(seconds)


def _sampled_sounds(known: pa.Array) -> Meaning:
    """Of structs of `array` and `sampling_rate`, as Hugging Face's datasets have decoded sounds."""
    seconds = [len(item["array"] or ()) / (item["sampling_rate"] or math.inf) for item in known.to_pylist()]
    return _sounds(seconds) if max(seconds) > 0 else Meaning("sounds without samples or a rate")


def _sounds(seconds: list[float]) -> Meaning:
    keys = {"type": "audio", "max_seconds": math.ceil(12 * max(seconds)) / 10}
    return Meaning(f"sounds of {min(seconds):.1f} to {max(seconds):.1f} s", keys)


def _encoded_images(known: pa.Array) -> Meaning:
    from PIL import Image

    some = known.to_pylist()[:: max(1, len(known) // IMAGES_LOOKED_AT)]
    sizes, modes = [], set()
    for item in some:
        try:
            with Image.open(io.BytesIO(item)) as image:
                sides = (image.height, image.width)
                sizes.append(sides if orientation(image) < LYING else sides[::-1])
                modes.add(image.mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
    if len(sizes) < NEARLY_ALL * len(some):
        return Meaning("bytes that are no PNG, JPEG, GIF, BMP or WebP image")
    middle = [sorted(side)[len(sizes) // 2] for side in zip(*sizes, strict=True)]
    scale = min(1.0, LONGEST_SIDE / max(middle))
    size = [max(1, round(side * scale)) for side in middle]
    channels = 1 if modes <= {"1", "L", "LA", "I;16"} else 3
    which = "all" if len(set(sizes)) == 1 else "of different sizes, in the middle"
    note = f"{which} {middle[0]} x {middle[1]} pixels"
    return Meaning(note, {"type": "image", "size": size, "channels": channels})


def _words(value: str) -> str:
    """A value for a comment: printable and short."""
    return shortened("".join(sign if sign.isprintable() else " " for sign in value)) or "''"
