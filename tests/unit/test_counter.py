"""The number of computed steps outlives the process that counts them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tidegate.training.counter import StepCounter

COUNT = """
import sys
from pathlib import Path
from tidegate.training.counter import StepCounter
counter = StepCounter(Path(sys.argv[1]))
steps = counter.read()
while True:
    steps += 1
    counter.write(steps)
    print(steps, flush=True)
"""


def killed_after(path: Path, steps: int) -> int:
    """The last step that a process told of, which counted on from the file and was killed."""
    with subprocess.Popen([sys.executable, "-c", COUNT, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(steps)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return max(int(line) for line in told)


def test_a_killed_process_leaves_every_step_it_counted(tmp_path: Path) -> None:
    path = tmp_path / "run" / "steps"
    before = 0
    for _ in range(3):
        told = killed_after(path, 400)
        counted = StepCounter(path).read()
        # It may have counted one more step than it had time to tell.
        assert counted - told in (0, 1)
        assert told >= before + 400
        before = counted


def test_a_new_counter_is_at_zero_and_one_that_is_opened_again_is_not(tmp_path: Path) -> None:
    counter = StepCounter(tmp_path / "steps")
    assert counter.read() == 0
    for steps in (1, 255, 256, 2**40 + 1, 7):
        counter.write(steps)
        assert StepCounter(tmp_path / "steps").read() == counter.read() == steps
    assert (tmp_path / "steps").stat().st_size == 8


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    script = (
        "import sys, tempfile; from pathlib import Path; from tidegate.training.counter import StepCounter\n"
        "folder = Path(sys.argv[1])\n"
        "(folder / 'filled').write_bytes(b'x' * 16384)\n"
        "try:\n    StepCounter(folder / 'steps')\nexcept OSError as error:\n    print(error.strerror)\n"
    )
    mount = f'mount -t tmpfs -o size=16k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "No space left on device\n"), done.stderr
