"""Batch inference as a Ray job: `ray job submit ... -- python jobs/predict.py MODEL@VERSION SOURCE -o FOLDER`.

Takes what `tidegate batch` takes: a job that was stopped or lost goes on when it is submitted again.
"""

import sys

from tidegate.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "batch")
    main()
