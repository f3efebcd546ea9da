"""The whole story in one command: start a cluster, train on real digits, register, serve, ask, show, stop."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import tidegate as tg
from tidegate import cluster, connection, settings
from tidegate.client import curl_line
from tidegate.data.prepare import prepare
from tidegate.errors import TidegateError
from tidegate.protocol import encode_request
from tidegate.serving.deploy import serve_url
from tidegate.spec.run import Spec

JOBS = Path(__file__).parent
SPEC = JOBS / "specs" / "digits.yaml"
SHADES = " .:-=+*#%@"
ROWS_SHOWN = 4
STAYS = "the endpoint stays up; to stop it: .venv/bin/tidegate down"
THEIRS = "the endpoint stays up; to take it away: .venv/bin/tidegate endpoints remove digits"
STOPPED = "stopped; everything is kept: .venv/bin/tidegate up brings the endpoint back"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the endpoint up")
    parser.add_argument("--port", type=int, default=8000, help="where endpoints answer (default 8000)")
    options = parser.parse_args()
    try:
        show(options.keep, options.port)
    except TidegateError as error:
        if settings.TRACEBACK.flag():
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def show(keep: bool, port: int) -> None:
    """Run the story on a new cluster, or on the one that is up, which then stays up."""
    own = not connection.is_joined() and not os.environ.get("RAY_ADDRESS") and cluster.current() is None
    print("starting Ray ..." if own else "using the cluster that is up", flush=True)
    served = False
    try:
        if own:
            cluster.up(serve_port=port)
        os.environ.setdefault(settings.SERVE_PORT.name, str(port))
        tg.connect()
        subprocess.run([sys.executable, str(JOBS / "datasets" / "digits.py")], check=True, stdout=subprocess.DEVNULL)
        spec = tg.load_spec(SPEC)
        outcome = tg.train(spec).outcome()
        outcome.raise_if_missed()
        ask(spec, serve_url())
        served = True
        print(f"\nmodel card and pictures: {outcome.version.path}/about")
    finally:
        if own and not (keep and served):
            cluster.down()
        if served:
            print((STAYS if keep else STOPPED) if own else THEIRS)


def ask(spec: Spec, url: str) -> None:
    """Send test rows to the endpoint over HTTP and show the answers beside the truth."""
    pixels, labels = test_rows(spec)
    with tg.Client(url) as client:
        answers = client.predict("digits", {"pixels": pixels})
        body = encode_request({"pixels": pixels[:1].reshape(1, -1).astype(np.float32)}).content
    given = answers["label"]
    print(f"\nasked {url} about {len(labels)} test rows: {np.mean(given == labels):.1%} right")
    print("\n".join(picture(pixels[:ROWS_SHOWN])))
    captions = [f"true {true}, answer {answer}" for true, answer in zip(labels, given, strict=True)]
    print("   ".join(f"{caption:<16}" for caption in captions[:ROWS_SHOWN]))
    print(f"\nthe same with curl:\n{curl_line(url, 'digits', body)}")


def test_rows(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[rows, 64]` and labels of the test split, as they stand in the source."""
    prepared = prepare(spec, lambda line: None)
    numbers = prepared.reader("test").read(np.arange(prepared.num_rows("test")))["__row"]
    table = pq.read_table(spec.data.source.path).take(numbers)
    return np.asarray(table.column("pixels").to_pylist()), np.asarray(table.column("label"))


def picture(images: np.ndarray) -> list[str]:
    """Images `[count, 64]` side by side, eight lines of text."""
    levels = (images.reshape(-1, 8, 8) / 16 * (len(SHADES) - 1)).round().astype(int)
    return ["   ".join("".join(SHADES[level] * 2 for level in image[line]) for image in levels) for line in range(8)]


if __name__ == "__main__":
    sys.exit(main())
