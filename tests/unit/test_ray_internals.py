"""Contracts with the installed Ray: every private name that Tidegate takes exists and is what it was taken for."""

from __future__ import annotations

import gc
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray.train.torch import TorchTrainer

from tidegate import ray_internals
from tidegate.errors import MissingError
from tidegate.ray_internals import NAMES
from tidegate.training import boot, resize
from tidegate.training.trainer import CONTROLLER

# Ray warns about its own settings when they are read.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_ray_has_it(name: str) -> None:
    assert ray_internals.take(name) is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["module", "attribute"])
def test_without_it_the_error_names_ray_the_name_and_the_feature(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = NAMES[name]._replace(**{part: f"{getattr(NAMES[name], part)}_gone"})
    monkeypatch.setitem(NAMES, name, gone)
    with pytest.raises(MissingError) as caught:
        ray_internals.take(name)
    expected = f"Ray {ray.__version__} has no {gone.module}.{gone.attribute}: {gone.feature} is off"
    assert caught.value.happened == expected
    assert "release of Ray" in caught.value.remedy


def test_every_name_of_the_table_is_taken_somewhere() -> None:
    source = "".join(path.read_text() for path in Path(ray_internals.__file__).parent.rglob("*.py"))
    assert [name for name in NAMES if f'take("{name}")' not in source] == []


def test_the_loopback_switch_is_read_where_addresses_are_resolved() -> None:
    from ray._private import ray_constants, services

    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert "ENABLE_RAY_CLUSTER" in inspect.getsource(services)


def test_the_client_of_serve_takes_whole_configurations() -> None:
    from ray.serve._private.client import ServeControllerClient

    assert list(inspect.signature(ServeControllerClient.deploy_apps).parameters)[:2] == ["self", "config"]
    assert hasattr(ServeControllerClient, "get_serve_details")


def test_serve_asks_replicas_for_the_stats_that_the_deployer_reads() -> None:
    from ray.serve._private.replica import Replica

    assert hasattr(Replica, "record_routing_stats")


def policy(**scaling: Any) -> Any:
    config = ray.train.ScalingConfig(num_workers=(2, 5), **scaling)
    return resize.policy(config, SimpleNamespace(), spare_cpus=0, need={"CPU": 2})


def test_rays_controller_asks_a_policy_by_the_methods_that_ours_has() -> None:
    """Ray's own policy has what ours replaces and what it calls, with the same arguments."""
    base, ours = ray_internals.scaling().policy, type(policy())
    assert issubclass(ours, base)
    replaced = [
        "make_decision_for_non_running_worker_group",
        "make_decision_for_running_worker_group",
        "_get_num_workers_for_resource_request",
    ]
    for method in replaced:
        assert list(inspect.signature(getattr(ours, method)).parameters) == list(
            inspect.signature(getattr(base, method)).parameters
        )
    assert list(inspect.signature(base._maybe_send_resource_request).parameters) == ["self"]


def test_a_policy_of_ours_claims_what_is_wanted_and_decides_in_rays_words() -> None:
    names = ray_internals.scaling()
    ours = policy(resources_per_worker={"CPU": 2})
    # Of the fewest until somebody says what is wanted: what is asked for may be bought.
    assert ours._get_num_workers_for_resource_request() == 2
    assert ours._get_resize_decision(3) == names.resize(num_workers=3, resources_per_worker={"CPU": 2})
    assert names.noop() == names.noop()


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Notes how its controller would be started."""

    started: dict[str, Any]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        type(self).started = options


@pytest.mark.parametrize("datasets", [False, True])
def test_a_trainer_hands_its_controller_the_policy_it_was_given_and_no_datasets_it_has_not(datasets: bool) -> None:
    method = NAMES["train_controller"].attribute.split(".")[1]
    assert hasattr(TorchTrainer, method)
    callbacks = [object(), ray_internals.take("datasets_callback").__new__(ray_internals.take("datasets_callback"))]
    sized = ray_internals.with_policy(Trainer, "ours", datasets=datasets)
    getattr(sized.__new__(sized), method)(scaling_policy="Ray's", failure_policy="kept", callbacks=callbacks)
    kept = callbacks if datasets else callbacks[:1]
    assert sized.started == {"scaling_policy": "ours", "failure_policy": "kept", "callbacks": kept}
    source = inspect.getsource(ray_internals.take("train_controller").__globals__["DataParallelTrainer"].fit)
    assert "scaling_policy=create_scaling_policy(" in source
    assert "callbacks=self._create_default_callbacks()" in source


@pytest.fixture
def untouched() -> Iterator[None]:
    """What `share_barrier` replaces, put back afterwards."""
    places = [
        (importlib.import_module(NAMES[name].module), NAMES[name].attribute) for name in ("barrier", "end_barrier")
    ]
    before = [getattr(module, attribute) for module, attribute in places]
    yield
    for (module, attribute), value in zip(places, before, strict=True):
        setattr(module, attribute, value)


def test_a_shared_barrier_stands_where_groups_begin_and_end(untouched: None) -> None:
    from ray.train.v2._internal.execution.worker_group import state, worker_group

    barrier = worker_group.SynchronizationActor
    ray_internals.share_barrier()
    shared = worker_group.SynchronizationActor
    ray_internals.share_barrier()
    assert worker_group.SynchronizationActor is shared
    assert (shared.actor_class, state._shutdown_sync_actor) == (barrier, shared.release)
    assert "SynchronizationActor.options(" in inspect.getsource(worker_group.WorkerGroup._start_impl)
    methods = barrier.__ray_metadata__.modified_class
    assert inspect.iscoroutinefunction(methods.reset)
    assert hasattr(methods, "get_counter")


def test_a_hook_of_a_process_is_an_environment_variable_that_ray_runs() -> None:
    from ray._private.runtime_env import setup_hook
    from ray._private.workers import default_worker

    gc.enable()
    try:
        # None: it ran. What Ray does with the variable when a process starts.
        assert setup_hook.load_and_execute_setup_hook("tidegate.training.boot.begin") is None
        assert not gc.isenabled()
    finally:
        boot.end()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    assert "WORKER_PROCESS_SETUP_HOOK_ENV_VAR" in Path(default_worker.__file__).read_text()


@pytest.mark.parametrize("taken", [False, True])
def test_a_hook_of_the_job_stays(taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = ray_internals.take("setup_hook")
    job = SimpleNamespace(runtime_env={"env_vars": {variable: "their.hook"}} if taken else {})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: job)
    assert ray_internals.setup_hook("ours") == ({} if taken else {variable: "ours"})


def test_workers_of_a_group_tell_their_node() -> None:
    from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
    from ray.train.v2._internal.execution.worker_group.worker import ActorMetadata, Worker

    assert "workers" in WorkerGroupState.__dataclass_fields__
    assert "metadata" in Worker.__dataclass_fields__
    assert "node_id" in ActorMetadata.__dataclass_fields__


def test_ray_train_reads_the_settings_that_a_run_makes() -> None:
    from ray.train.v2._internal import constants

    known = {value for name, value in vars(constants).items() if name.endswith("_ENV_VAR")}
    assert set(CONTROLLER) <= known


def test_nodes_that_are_drained_are_asked_for_by_a_method_that_is_there() -> None:
    state = ray_internals.take("cluster_state")
    assert list(inspect.signature(type(state).get_draining_nodes).parameters) == ["self"]
    assert not inspect.signature(ray_internals.take("free_by_node")).parameters
