"""Train a run spec as a Ray job: `ray job submit ... -- python jobs/train.py jobs/specs/digits.yaml`.

Takes what `tidegate train` takes: with `--name RUN` a job that was stopped or lost goes on when it is submitted again.
"""

import sys

from tidegate.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
