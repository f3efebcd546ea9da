"""A tenant's rate over all replicas of an endpoint together: the requests a second it really gets."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from open_loop import offer, post

TESTS = Path(__file__).parents[1]
PORT = 18000
WITHIN = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the tenant; twice that is sent")
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as folder:
        os.environ.update(HOME=folder, TIDEGATE_HOME=f"{folder}/kept", OMP_NUM_THREADS="1")
        return 0 if measured(Path(folder), options.rate, options.seconds) else 1


def measured(folder: Path, rate: float, seconds: int) -> bool:
    import tidegate as tg
    from tidegate import cluster, connection

    sys.path.insert(0, str(TESTS))
    from numbers_model import BODY, register

    cluster.up(serve_port=PORT, auth="disabled")
    try:
        connection.connect()
        register(folder / "model", 1)
        key = tg.create_key("acme")[1]
        reached = []
        for replicas in (2, 4):
            bounds = {"min": replicas, "max": replicas, "cpu": 0.1}
            access = {"tenants": {"acme": {"requests_per_s": rate}}}
            spec = {"name": "numbers", "model": "numbers", "replicas": bounds, "access": access}
            url = tg.deploy(tg.Endpoint.model_validate(spec)).url + "/infer"
            request = post(url, json.dumps(BODY).encode(), {"Authorization": f"Bearer {key}"})
            time.sleep(2)  # Every replica has read the key, and asked for its share.
            offer(url, request, 2 * rate, 5)  # What may come at once has gone.
            answers = offer(url, request, 2 * rate, seconds)
            got = answers.statuses[200] / seconds
            is_so = abs(got / rate - 1) <= WITHIN
            reached.append(is_so)
            print(
                f"rates, {replicas} replicas: {got:.1f} of {rate:g} requests/s, {answers.refused} refused with a time:"
                f" {'reached' if is_so else 'MISSED'}",
                flush=True,
            )
        return all(reached)
    finally:
        cluster.down()


if __name__ == "__main__":
    sys.exit(main())
