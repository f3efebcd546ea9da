"""What replicas are to serve, in files that are read when they have changed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tidegate.serving import targets
from tidegate.serving.targets import Target, Watch

TARGET = Target(1, "digits@3", 3, "/models/3", "abc", {"max_rows": 64}, {"rows": 8}, {}, {})


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))


def test_a_change_is_told_once() -> None:
    targets.publish("digits", asdict(TARGET))
    watch, late = Watch("digits"), Watch("digits")
    document = watch.changed()
    assert document is not None
    assert Target(**document) == TARGET
    assert watch.changed() is None
    # The same size, written within the same tick of a coarse clock: another file all the same.
    targets.publish("digits", asdict(TARGET) | {"generation": 2})
    assert (watch.changed() or {})["generation"] == 2
    assert watch.changed() is None
    assert (late.changed() or {})["generation"] == 2


def test_what_cannot_be_read_is_told_once_and_then_read_again(tmp_path: Path) -> None:
    targets.publish("digits", asdict(TARGET))
    watch = Watch("digits")
    (tmp_path / "targets" / "digits.json").write_text('{"generation": 1')
    with pytest.raises(ValueError, match="delimiter"):
        watch.changed()
    assert watch.changed() is None
    (tmp_path / "targets" / "digits.json").write_text("[]")
    with pytest.raises(ValueError, match="no object"):
        watch.changed()
    targets.publish("digits", asdict(TARGET))
    assert watch.changed() is not None
    targets.withdraw("digits")
    with pytest.raises(FileNotFoundError):
        watch.changed()
    targets.withdraw("digits")
    assert [path.name for path in (tmp_path / "targets").iterdir()] == []
