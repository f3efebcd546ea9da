"""What a replica has counted, and what several have together."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.meter import MOST_KEPT, Meter, summed


def computed(meter: Meter, tenant: str = "", rows: int = 1, device: float = 0.0, **seconds: float) -> None:
    meter.computed(tenant, rows, device, **{"read": 0.0, "queue": 0.0, "compute": 0.0, "write": 0.0, **seconds})


def busy() -> Meter:
    meter = Meter()
    for tenant, rows in (("acme", 2), ("acme", 3), ("", 1)):
        computed(meter, tenant, rows, 0.25 * rows, read=0.125, queue=0.25, compute=0.5, write=0.0625)
        meter.answered(tenant, 200, 1.0)
    meter.answered("acme", 429, 0.5)
    meter.answered("acme", 500, 0.25)
    for rows, seconds in ((5, 0.5), (1, 0.25), (5, 0.75)):
        meter.passed(rows, seconds)
    return meter


def test_a_replica_that_was_asked_nothing_has_statistics() -> None:
    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    assert Meter().statistics("digits", "3") == {
        "name": "digits",
        "version": "3",
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": {kind: {"count": 0, "ns": 0} for kind in kinds},
        "batch_stats": [],
    }


def test_requests_rows_and_passes_are_counted_with_their_times() -> None:
    before = time.time_ns() // 1_000_000
    found = busy().statistics("digits", "3")
    assert before <= found.pop("last_inference") <= time.time_ns() // 1_000_000
    assert found == {
        "name": "digits",
        "version": "3",
        "inference_count": 6,
        "execution_count": 3,
        "inference_stats": {
            "success": {"count": 3, "ns": 3_000_000_000},
            "fail": {"count": 2, "ns": 750_000_000},
            "queue": {"count": 3, "ns": 750_000_000},
            "compute_input": {"count": 3, "ns": 375_000_000},
            "compute_infer": {"count": 3, "ns": 1_500_000_000},
            "compute_output": {"count": 3, "ns": 187_500_000},
        },
        "batch_stats": [
            {"batch_size": 1, "compute_infer": {"count": 1, "ns": 250_000_000}},
            {"batch_size": 5, "compute_infer": {"count": 2, "ns": 1_250_000_000}},
        ],
    }


def test_every_tenant_has_its_own_traffic() -> None:
    traffic = busy().traffic
    assert traffic["acme"].statuses == {200: 2, 429: 1, 500: 1}
    assert (traffic["acme"].rows, traffic["acme"].device_seconds) == (5, 1.25)
    assert traffic[""].statuses == {200: 1}
    assert (traffic[""].rows, traffic[""].device_seconds) == (1, 0.25)


def test_what_is_told_one_by_one_is_kept_until_it_is_taken_but_not_without_end() -> None:
    meter = busy()
    assert list(meter.latencies) == [("acme", 1.0), ("acme", 1.0), ("", 1.0), ("acme", 0.5), ("acme", 0.25)]
    assert list(meter.queued) == [0.25] * 3
    assert list(meter.batches) == [5, 1, 5]
    for number in range(MOST_KEPT + 5):
        meter.passed(number, 0.0)
        meter.answered("", 200, number)
        computed(meter, queue=number)
    # The latest are kept.
    assert len(meter.batches) == len(meter.latencies) == len(meter.queued) == MOST_KEPT
    assert (meter.batches[-1], meter.latencies[-1], meter.queued[-1]) == (number, ("", number), number)


def test_several_replicas_are_told_of_as_one() -> None:
    one, two = busy().statistics("digits", "3"), busy().statistics("digits", "3")
    two["batch_stats"][0]["batch_size"] = 2
    two["last_inference"] = one["last_inference"] + 7
    found = summed([one, two])
    assert (found["name"], found["version"]) == ("digits", "3")
    assert found["last_inference"] == two["last_inference"]
    assert (found["inference_count"], found["execution_count"]) == (12, 6)
    assert found["inference_stats"]["success"] == {"count": 6, "ns": 6_000_000_000}
    assert found["inference_stats"]["compute_output"] == {"count": 6, "ns": 375_000_000}
    assert found["batch_stats"] == [
        {"batch_size": 1, "compute_infer": {"count": 1, "ns": 250_000_000}},
        {"batch_size": 2, "compute_infer": {"count": 1, "ns": 250_000_000}},
        {"batch_size": 5, "compute_infer": {"count": 4, "ns": 2_500_000_000}},
    ]


def test_one_replica_is_the_sum_of_itself() -> None:
    alone = busy().statistics("digits", "3")
    assert summed([alone]) == alone


@st.composite
def statistics(draw: st.DrawFn) -> dict[str, Any]:
    meter = Meter()
    for rows, eighths, status in draw(
        st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9), st.sampled_from([200, 503])), max_size=6)
    ):
        # Eighths add up exactly.
        meter.passed(rows, eighths / 8)
        meter.answered("", status, eighths / 8)
        computed(meter, rows=rows, queue=eighths / 8)
    return meter.statistics("digits", "3")


@given(st.lists(statistics(), min_size=2, max_size=4))
def test_the_order_and_the_grouping_of_replicas_say_nothing(found: list[dict[str, Any]]) -> None:
    assert summed(found) == summed(found[::-1])
    assert summed([summed(found[:1]), summed(found[1:])]) == summed(found)
    assert summed(found)["inference_count"] == sum(each["inference_count"] for each in found)
