"""Train a run spec as a Ray job: `ray job submit ... -- python jobs/train.py jobs/specs/digits.yaml`."""

import sys

from tidegate.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
