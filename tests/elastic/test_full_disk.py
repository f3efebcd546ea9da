"""A disk that is full while data is prepared, a checkpoint is written, a version is made: a line, and nothing lost.

Each of the folders becomes a small disk of its own, in a mount namespace that ends with the test.
"""

from __future__ import annotations

from typing import Any

import pytest

from ports import free_port
from stranger import Stranger

pytestmark = pytest.mark.cluster

# Prints, for each folder, the exit code and the last line of a `tidegate train` while it is a disk of 16 KiB; then of
# one without.
SCRIPT = """
kept=$HOME/.tidegate
train() {
  tidegate train jobs/specs/varied.yaml --name "$2" >/dev/null 2>errors
  echo "$1|$?|$(grep -c . errors)|$(tail -1 errors)"
  sed 's/^/    /' errors
}
tidegate up --port "$PORT" >/dev/null || exit 1
mkdir -p $kept/prepared $kept/runs $kept/artifacts/digits
for folder in prepared runs artifacts/digits; do
  mount -t tmpfs -o size=16k none $kept/$folder
  train $folder digits-${folder%%/*}
  find $kept/$folder -name '*.partial' -o -name '*.part' -o -name '.draft-*' | sed 's/^/left|/'
  umount $kept/$folder
done
train again digits-artifacts
tidegate models
tidegate down >/dev/null
"""


def test_a_full_disk_is_one_line_and_nothing_is_lost(stranger: Stranger) -> None:
    def short(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 12, "workers": {"min": 1, "max": 1}}
        document["evaluate"]["require"] = {"test.accuracy": {"at_least": 0.8}}
        document["publish"] = {"alias": "production"}

    stranger.run("python", "jobs/datasets/digits.py")
    stranger.write_spec(short)
    done = stranger.run("unshare", "-rm", "bash", "-c", SCRIPT, PORT=str(free_port()))
    told = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    assert [line[0] for line in told] == ["prepared", "runs", "artifacts/digits", "again"], done.stdout + done.stderr
    # A run whose folder is full says so while it trains, too.
    for (_, code, lines, message), most in zip(told[:3], (1, 2, 1), strict=True):
        assert code == "2", done.stdout
        assert 1 <= int(lines) <= most, done.stdout
        assert message.startswith("error: ")
        assert "No space left on device" in message
        assert "free some space" in message
    assert told[3][1:3] == ["0", "0"], done.stdout
    assert "digits@1" in done.stdout
    assert "digits@2" not in done.stdout
