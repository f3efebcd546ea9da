"""How many workers fit where, against counting them one by one; and what a worker needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.spec.data import Data
from tidegate.spec.train import Workers
from tidegate.training.room import feed_cpus, fitting, needs

amounts = st.integers(0, 12)
nodes_of = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.fixed_dictionaries({"CPU": amounts}, optional={"GPU": amounts, "memory": amounts}),
)
needs_of = st.fixed_dictionaries({"CPU": st.integers(1, 4)}, optional={"GPU": st.integers(1, 2)})


def one_by_one(nodes: dict[str, dict[str, int]], need: dict[str, int], spare: int) -> int:
    """Place workers one at a time wherever one fits, and stop before the CPUs left over are too few."""
    left = {node: dict(have) for node, have in nodes.items()}
    count = 0
    while True:
        fits = [have for have in left.values() if all(have.get(kind, 0) >= amount for kind, amount in need.items())]
        if not fits or sum(have["CPU"] for have in left.values()) - need["CPU"] < spare:
            return count
        for kind, amount in need.items():
            fits[0][kind] -= amount
        count += 1


@given(nodes_of, needs_of, st.integers(0, 3))
def test_as_many_fit_as_can_be_placed_one_by_one(
    nodes: dict[str, dict[str, int]], need: dict[str, int], spare: int
) -> None:
    assert fitting(nodes, need, spare_cpus=spare) == one_by_one(nodes, need, spare)


@given(nodes_of, needs_of, st.integers(0, 3))
def test_another_node_never_makes_less_room(nodes: dict[str, dict[str, int]], need: dict[str, int], spare: int) -> None:
    grown = nodes | {"new": {"CPU": 5, "GPU": 1}}
    assert fitting(grown, need, spare_cpus=spare) >= fitting(nodes, need, spare_cpus=spare)


@given(st.integers(1, 5), st.integers(0, 20))
def test_amounts_that_rays_arithmetic_left_a_hair_short_count(each: int, count: int) -> None:
    held = each * count * (1 - 1e-13)
    assert fitting({"a": {"CPU": held}}, {"CPU": each}, spare_cpus=0) == count


def test_a_worker_does_not_span_nodes() -> None:
    nodes = {"a": {"CPU": 3.0}, "b": {"CPU": 3.0}}
    assert fitting(nodes, {"CPU": 2}, spare_cpus=0) == 2
    assert fitting(nodes, {"CPU": 4}, spare_cpus=0) == 0


def test_the_cpus_left_over_may_be_anywhere() -> None:
    nodes = {"a": {"CPU": 4.0}, "b": {"CPU": 1.0}}
    assert fitting(nodes, {"CPU": 2}, spare_cpus=1) == 2
    assert fitting(nodes, {"CPU": 2}, spare_cpus=2) == 1


@pytest.mark.parametrize(
    ("workers", "need"),
    [
        (Workers(min=1, max=1), {"CPU": 1}),
        (Workers(min=1, max=1, cpu=4), {"CPU": 4}),
        (Workers(min=1, max=1, cpu=2, gpu=1), {"CPU": 2, "GPU": 1}),
        (Workers(min=1, max=1, gpu=1, accelerator="H100"), {"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}),
    ],
)
def test_what_a_worker_needs(workers: Workers, need: dict[str, float]) -> None:
    assert needs(workers) == need


def test_an_accelerator_of_another_type_is_no_room() -> None:
    need = needs(Workers(min=1, max=1, gpu=1, accelerator="H100"))
    have = {"CPU": 8.0, "GPU": 4.0}
    assert fitting({"a": {**have, "accelerator_type:A100": 1.0}}, need, spare_cpus=0) == 0
    assert fitting({"a": {**have, "accelerator_type:H100": 1.0}}, need, spare_cpus=0) == 4


@pytest.mark.parametrize(("feed", "cpus"), [("ray_data", 1), ("local", 0), ("auto", 0)])
def test_only_the_ray_data_feed_needs_a_cpu_of_its_own(feed: str, cpus: int) -> None:
    data = Data.model_validate(
        {
            "source": {"path": "x.parquet"},
            "inputs": {"x": {"type": "number"}},
            "target": {"column": "y", "type": "number"},
            "feed": feed,
        }
    )
    assert feed_cpus(data) == cpus
