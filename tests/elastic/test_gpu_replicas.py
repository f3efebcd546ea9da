"""Logical GPUs: an endpoint goes from one replica to three and back under load, beside a run that holds the rest."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import tidegate as tg
from live_runs import DIGITS, InThread, ignore, on_disk, spec_of, table_of, wait_until
from local_ray import own_surroundings
from ports import free_port
from tidegate import cluster, settings
from tidegate.data.prepare import prepare
from tidegate.scheduling import arbiter
from tidegate.scheduling.report import Holder
from tidegate.spec.run import Spec

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
ENDPOINT = {
    "name": "digits",
    "model": "digits",
    "replicas": {"min": 1, "max": 3, "cpu": 0, "gpu": 1},
    # Clients of one process keep a quick model busy for a part of the time only.
    "autoscale": {"target_ongoing_requests": 0.1, "up_after_s": 0, "down_after_s": 1},
}


@pytest.fixture(scope="module")
def three_gpus() -> Iterator[None]:
    with own_surroundings():
        try:
            cluster.up(cpus=8, gpus=3, serve_port=free_port(), auth="disabled")
            tg.connect()
            (settings.home() / arbiter.RULES).write_text("cool_down_s: 2\n")
            yield
        finally:
            cluster.down()


def on_gpus(workers: tuple[int, int], **train: object) -> Spec:
    spec = on_disk(spec_of(DIGITS, workers, **train))
    with_gpu = spec.train.workers.model_copy(update={"gpu": 1})
    return spec.model_copy(update={"train": spec.train.model_copy(update={"workers": with_gpu})})


def endpoint() -> Holder:
    (found,) = [each for each in tg.capacity_report().holders if each.name == "tidegate.digits/replica"]
    return found


def test_an_endpoint_grows_into_a_run_s_gpus_and_shrinks_again(three_gpus: None) -> None:
    tg.train(on_gpus((1, 1), epochs=2), name="to-serve").wait()
    tg.deploy(tg.Endpoint.model_validate(ENDPOINT))
    pixels = table_of("digits").column("pixels").to_pylist()[:200]
    spec = on_gpus((1, 2), epochs=100_000)
    with InThread(spec, prepare(spec, ignore), "lender") as run:
        run.until_size(2)
        assert (endpoint().has, endpoint().need) == (1, {"GPU": 1.0})
        going = [True]

        def ask() -> int:
            answered = 0
            while going[0]:
                answered += bool(tg.predict("digits", {"pixels": pixels}))
            return answered

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask) for _ in range(8)]
            # Its fewest workers are in the way of the third replica: the run is paused whole.
            run.until(lambda: endpoint().has == 3 or any(each.done() for each in asked))
            run.until_phase("waiting")
            going[0] = False
            assert all(each.result() for each in asked)
        wait_until(lambda: endpoint().has == 1)
        run.until_size(2)
