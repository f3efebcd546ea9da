"""How long the rows of prepared files are: texts in tokens, series in steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tidegate.data.prepared import open_arrays
from tidegate.transforms.base import Array, length_key


@dataclass(frozen=True)
class FileLengths:
    """Read from the files themselves, when they are asked for. Travels to any machine by pickle."""

    files: tuple[Path, ...]
    rows: tuple[int, ...]

    def of_file(self, file: int) -> Array:
        """int64 `[rows]`; of several inputs the sum. Raises DataError when the file is damaged."""
        arrays = open_arrays(self.files[file], self.rows[file])
        known = [array[:, 0] for name, array in arrays.items() if name.startswith(length_key(""))]
        total: Array = np.stack(known).sum(axis=0, dtype=np.int64)
        return total
