"""What the driver of a run keeps in MLflow: every epoch once, whoever computes it again, and how the run fares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tidegate import evaluation, lifecycle, store, tracking
from tidegate.errors import ArtifactError, UnavailableError
from tidegate.training.progress import News, Progress, Totals


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture
def run(home: None, request: pytest.FixtureRequest) -> str:
    return tracking.start_run(request.node.name, spec="name: digits", tags={})


def news(step: int, *epochs: int, restarts: int = 0) -> News:
    records = [{"epoch": epoch, "step": 10 * epoch, "train.loss": 1 / epoch} for epoch in epochs]
    return News(Progress(step=step, total_steps=100, workers=2), records, totals=Totals(restarts=restarts))


def curve(run: str, metric: str) -> list[tuple[int, float]]:
    """`(step, value)`, as MLflow has them."""
    return store.attempt(lambda client: [(point.step, point.value) for point in client.get_metric_history(run, metric)])


def told(run: str, on_news: Callable[[News], None] = lambda news: None) -> Callable[[News], None]:
    return lifecycle._logged(run, on_news)


def test_every_epoch_is_logged_with_how_the_run_fares(run: str) -> None:
    seen: list[News] = []
    tell = told(run, seen.append)
    for item in (news(5), news(12, 1), news(15), news(31, 2, 3, restarts=1)):
        tell(item)
    assert len(seen) == 4
    assert curve(run, "epoch") == [(10, 1), (20, 2), (30, 3)]
    assert curve(run, "train.loss") == [(10, 1), (20, 1 / 2), (30, 1 / 3)]
    assert curve(run, "run.workers") == [(12, 2), (31, 2)]
    assert curve(run, "run.restarts") == [(12, 0), (31, 1)]


def test_between_long_epochs_it_is_logged_every_so_often(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(lifecycle, "time", SimpleNamespace(monotonic=lambda: now))
    tell = told(run)
    for step in range(8):
        now += lifecycle.LOGGED_EVERY_S / 3
        tell(news(step))
    assert curve(run, "run.workers") == [(2, 2), (5, 2)]


def test_before_the_first_step_there_is_nothing_to_log(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LOGGED_EVERY_S", -1.0)
    told(run)(News(Progress()))
    assert curve(run, "run.workers") == []


def test_a_driver_that_follows_a_lost_one_logs_no_epoch_again(run: str) -> None:
    told(run)(news(31, 1, 2, 3))
    follower = told(run)
    follower(news(31, 2, 3))
    follower(news(41, 4))
    assert curve(run, "epoch") == [(10, 1), (20, 2), (30, 3), (40, 4)]


def test_a_run_that_begins_anew_logs_all_of_its_epochs(run: str) -> None:
    told(run)(news(31, 1, 2, 3))
    anew = told(run)
    anew(news(11, 1))
    anew(news(21, 2))
    assert sorted(curve(run, "epoch")) == [(10, 1), (10, 1), (20, 2), (20, 2), (30, 3)]


def test_what_mlflow_could_not_take_is_logged_with_the_next_news(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, log = told(run), tracking.log_history

    def busy(*_: Any) -> None:
        raise UnavailableError("the registry is busy")

    monkeypatch.setattr(tracking, "log_history", busy)
    with pytest.raises(UnavailableError):
        tell(news(12, 1))
    monkeypatch.setattr(tracking, "log_history", log)
    tell(news(13))
    assert curve(run, "epoch") == [(10, 1)]


def test_epochs_that_ended_while_mlflow_was_busy_to_the_end_are_logged_from_the_checkpoint(run: str) -> None:
    told(run)(news(21, 1, 2))
    for _ in range(2):
        lifecycle._complete(run, news(41, 1, 2, 3, 4).epochs)
    assert curve(run, "epoch") == [(10, 1), (20, 2), (30, 3), (40, 4)]
    assert curve(run, "train.loss")[3] == (40, 1 / 4)


def test_an_epoch_is_kept_even_if_showing_it_fails(run: str) -> None:
    def broken(item: News) -> None:
        if item.epochs:
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        told(run, broken)(news(12, 1))
    assert curve(run, "epoch") == [(10, 1)]


def test_a_version_that_does_not_answer_as_the_trained_module_is_refused() -> None:
    report = evaluation.report("classification", torch.eye(2), torch.tensor([0, 1]), classes=["a", "b"])
    loss = report.metrics["loss"]
    history = [{"epoch": 1, "validation.loss": 2 * loss}, {"epoch": 2, "validation.loss": loss * 1.0001}]
    lifecycle._check_answers(report, history)
    with pytest.raises(ArtifactError, match=r"does not answer as the trained one: its validation loss is 0\.3133"):
        lifecycle._check_answers(report, history[:1])
