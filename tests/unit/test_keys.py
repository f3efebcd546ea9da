"""Keys for endpoints, in real files: what is kept, what is found, and what nothing ever tells."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import stat
import timeit
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from tidegate import connection, keys
from tidegate import settings as environment
from tidegate.errors import ConflictError, NotFoundError, SpecError, StorageError, UnavailableError
from tidegate.keys import SCOPES, Key, Keyring
from tidegate.remote import entry
from tidegate.remote.keys import create_key, list_keys, revoke_key

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def test_a_key_comes_back_as_it_was_made(home: Path) -> None:
    before = datetime.now(UTC)
    key, text = keys.create("acme", scopes=["deploy", "predict", "deploy"], endpoints=["net", "a_b-c"], expires_in=HOUR)
    assert re.fullmatch(rf"tg_{key.id}_[A-Za-z0-9_-]{{43}}", text)
    assert (key.tenant, key.scopes, key.endpoints) == ("acme", ("deploy", "predict"), ("net", "a_b-c"))
    assert before <= key.created <= datetime.now(UTC)
    assert key.expires == key.created + HOUR
    plain, other = keys.create("acme")
    assert (plain.scopes, plain.endpoints, plain.expires) == (("predict",), (), None)
    assert keys.listed() == [key, plain]
    ring = keys.read()
    assert ring.find(text) == ring.find(text.encode()) == key
    assert ring.find(other) == plain
    assert {one.created.tzinfo for one in keys.listed()} == {UTC}


def test_no_keys_are_no_mistake_and_open_nothing(home: Path) -> None:
    assert keys.listed() == []
    assert keys.read().find("") is None
    assert keys.stamp() is None


@pytest.mark.parametrize("text", ["", "tg_", "é", "\ud800", b"\xff\x00", "x" * 100_000])
def test_what_is_no_key_is_not_found(text: str | bytes) -> None:
    keys.create("acme")
    assert keys.read().find(text) is None


def test_a_key_is_found_as_a_whole_only() -> None:
    key, text = keys.create("acme")
    ring = keys.read()
    for wrong in (text[:-1], text + " ", text.upper(), text.removeprefix("tg_"), key.id, key.digest, f"Bearer {text}"):
        assert ring.find(wrong) is None


def test_the_text_is_told_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    key, text = keys.create("acme", endpoints=["net"], expires_in=HOUR)
    secret = text.removeprefix(f"tg_{key.id}_")
    told = [repr(key), str(key), repr(keys.read()), caplog.text, json.dumps(keys.to_json(key))]
    told += [path.read_text() for path in home.iterdir()]
    assert not any(secret in one for one in told)
    assert key.digest not in repr(key)
    assert key.digest in (home / "keys.json").read_text()


def test_only_the_owner_may_read_the_file(home: Path) -> None:
    old = os.umask(0)
    try:
        keys.create("acme")
        keys.create("acme")
    finally:
        os.umask(old)
    assert stat.S_IMODE((home / "keys.json").stat().st_mode) == 0o600
    assert {path.name for path in home.iterdir()} == {"keys.json", "keys.lock"}


def test_a_revoked_key_is_not_found() -> None:
    (gone, text), (stays, other) = keys.create("acme"), keys.create("acme")
    before = keys.read()
    assert keys.revoke(gone.id) == gone
    assert before.find(text) == gone, "a key ring never changes"
    assert keys.read().find(text) is None
    assert keys.read().find(other) == stays
    with pytest.raises(NotFoundError, match=rf"no key '{gone.id}'; expected one of {stays.id} \(acme\)"):
        keys.revoke(gone.id)


def test_of_many_keys_the_newest_are_named() -> None:
    made = [keys.create("acme")[0] for _ in range(12)]
    with pytest.raises(NotFoundError) as raised:
        keys.revoke("0" * 8)
    assert raised.value.expected.endswith(f"{made[-1].id} (acme) and 2 older")
    assert made[1].id not in raised.value.expected


def test_a_text_in_place_of_an_id_is_refused_and_not_repeated() -> None:
    _, text = keys.create("acme")
    with pytest.raises(SpecError) as raised:
        keys.revoke(text)
    assert text not in str(raised.value)
    assert "the 8 hex digits after tg_" in str(raised.value)
    assert len(keys.listed()) == 1


def test_an_expired_key_is_listed_and_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = keys.create("acme", expires_in=HOUR)
    last, first = key.created + HOUR - timedelta(milliseconds=1), key.created + HOUR

    def found(now: datetime) -> tuple[bool, bool]:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return now

        with monkeypatch.context() as patch:
            patch.setattr(keys, "datetime", Clock)
            patch.setattr(keys.time, "time", now.timestamp)
            return keys.read().find(text) is not None, keys.listed()[0].is_expired

    assert (found(last), found(first)) == ((True, False), (False, True))
    assert keys.create("acme")[0].is_expired is False


@pytest.mark.parametrize(
    ("scopes", "endpoints", "opens"),
    [
        (("predict",), (), {("predict", "a"), ("predict", "b")}),
        (("deploy",), ("a",), {("deploy", "a")}),
        (("predict", "deploy"), ("b",), {("predict", "b"), ("deploy", "b")}),
        (("admin",), ("a",), {("predict", "a"), ("deploy", "a"), ("admin", "a")}),
    ],
)
def test_what_a_key_opens(scopes: tuple[str, ...], endpoints: tuple[str, ...], opens: set[tuple[str, str]]) -> None:
    key, _ = keys.create("acme", scopes=scopes, endpoints=endpoints)
    assert {(scope, endpoint) for scope in SCOPES for endpoint in ("a", "b") if key.may(scope, endpoint)} == opens


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"tenant": "Acme"}, "tenant 'Acme'; expected lower-case"),
        ({"tenant": "acme\n"}, r"tenant 'acme\\n'"),
        ({"tenant": ""}, "tenant ''"),
        ({"tenant": "a" * 64}, "at most 63"),
        ({"endpoints": ["net", "../net"]}, r"endpoint '\.\./net'"),
        ({"endpoints": "net"}, "expected a list of endpoints"),
        ({"scopes": "predict"}, "expected a list of scopes"),
        ({"scopes": ["all"]}, "scope 'all'; expected one of predict, deploy, admin"),
        ({"scopes": []}, "a key without scopes opens nothing"),
        ({"expires_in": timedelta()}, "never opens anything"),
        ({"expires_in": -HOUR}, "never opens anything"),
        ({"expires_in": timedelta.max}, "a year before 10000"),
    ],
)
def test_what_no_key_can_have_is_refused(home: Path, wish: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        keys.create(**{"tenant": "acme"} | wish)
    assert not (home / "keys.json").exists()


def test_an_id_that_is_taken_is_refused() -> None:
    key, text = keys.create("acme")
    with pytest.raises(ConflictError, match=f"a key {key.id} already"):
        keys.add(replace(key, digest="0" * 64))
    assert keys.read().find(text) == key


def test_the_clock_of_who_keeps_a_key_counts() -> None:
    key, _ = keys.draft("acme", scopes=["predict"], endpoints=[], expires_in=HOUR)
    wrong = key.created - 100 * HOUR
    kept = keys.add(replace(key, created=wrong, expires=wrong + HOUR))
    assert kept.created >= key.created
    assert kept.expires == kept.created + HOUR


def _create_many(home: str, tenant: str, begin: Any, texts: Any) -> None:
    os.environ["TIDEGATE_HOME"] = home
    begin.wait()
    for _ in range(20):
        texts.put(keys.create(tenant)[1])


def test_two_processes_at_once_lose_nothing(home: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    begin, texts = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=_create_many, args=(str(home), name, begin, texts)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    made = [texts.get(timeout=60) for _ in range(40)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ring = keys.read()
    assert all(ring.find(text) for text in made)
    assert len(keys.listed()) == 40


def test_whoever_waits_too_long_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOCK_S", 0.1)
    with FileLock(home / "keys.lock"), pytest.raises(UnavailableError, match="another process kept"):
        keys.create("acme")


def test_a_stamp_changes_with_the_file(home: Path) -> None:
    seen = [keys.stamp()]
    key, _ = keys.create("acme")
    seen.append(keys.stamp())
    keys.create("acme")
    seen.append(keys.stamp())
    keys.revoke(key.id)
    seen.append(keys.stamp())
    assert keys.stamp() == seen[-1]
    path = home / "keys.json"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    draft = home / "draft"
    draft.write_bytes(path.read_bytes())
    os.utime(draft, ns=times)
    draft.replace(path)
    seen.append(keys.stamp())
    assert len(set(seen)) == 5, "another file of the same size and time is another one, too"


def refused(path: Path, content: bytes) -> str:
    """What is said of a file of that content, which stays as it is."""
    path.write_bytes(content)
    said = set()
    for action in (keys.listed, keys.read, lambda: keys.create("acme"), lambda: keys.revoke("0" * 8)):
        with pytest.raises(StorageError) as raised:
            action()
        said.add(str(raised.value))
    assert path.read_bytes() == content
    (only,) = said
    return only


def test_a_file_cut_short_is_refused_wherever_it_ends(home: Path) -> None:
    keys.create("acme", endpoints=["net"], expires_in=HOUR)
    path = home / "keys.json"
    whole = path.read_bytes().rstrip()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(StorageError, match="is damaged"):
            keys.read()
    assert f"the file of keys {path} is damaged" in refused(path, whole[:-1])


def of(**changes: Any) -> Any:
    """The content of a file whose one key is changed so."""
    key = {
        "id": "0a1b2c3d",
        "tenant": "acme",
        "scopes": ["predict"],
        "endpoints": [],
        "created": "2026-11-23T07:00:00Z",
        "expires": None,
        "digest": "5" * 64,
    }
    return {"format": 1, "keys": [key | changes]}


def test_a_whole_file_is_taken(home: Path) -> None:
    (home / "keys.json").write_text(json.dumps(of(expires="2026-11-23T09:00:00+02:00")))
    (key,) = keys.listed()
    assert key.expires == key.created == datetime(2026, 11, 23, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    "content",
    [
        *(None, [], {}, 3, {"keys": []}, {"format": 2, "keys": []}, {"format": 1}, {"format": 1, "keys": None}),
        {"format": 1, "keys": [], "networks": []},
        {"format": 1, "keys": of()["keys"] * 2},
        *(
            {"format": 1, "keys": [*of()["keys"], *of(**{key: "0" * size})["keys"]]}
            for key, size in (("id", 8), ("digest", 64))
        ),
        *(of(id="0A1B2C3D"), of(tenant="Acme"), of(tenant=None), of(scopes=[]), of(scopes=["all"]), of(endpoints=[""])),
        *(of(scopes="predict"), of(endpoints=None), of(digest="5" * 63), of(digest="5" * 65), of(network="10.0.0.0/8")),
        *(of(created="2026-11-23T07:00:00"), of(created=None), of(expires="soon"), of(expires=1900000000)),
        of(expires="0001-01-01T00:00:00+23:59"),
    ],
)
def test_a_file_that_says_anything_else_is_refused(home: Path, content: Any) -> None:
    said = refused(home / "keys.json", json.dumps(content).encode())
    assert "is damaged" in said
    assert "555" not in said


def test_a_file_that_cannot_be_read_is_refused(home: Path) -> None:
    (home / "keys.json").mkdir()
    with pytest.raises(StorageError, match=r"keys\.json cannot be read: Is a directory"):
        keys.read()


def test_a_disk_that_takes_nothing_leaves_the_keys_as_they_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = keys.create("acme")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for action in (lambda: keys.create("acme"), lambda: keys.revoke(key.id)):
        with pytest.raises(StorageError, match="free some space"):
            action()
    monkeypatch.undo()
    monkeypatch.setenv(environment.HOME.name, str(home))
    assert keys.read().find(text) == key
    assert {path.name for path in home.iterdir()} == {"keys.json", "keys.lock"}


names = st.from_regex(r"\A[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\Z")
wishes = st.fixed_dictionaries(
    {
        "tenant": names,
        "scopes": st.lists(st.sampled_from(SCOPES), min_size=1),
        "endpoints": st.lists(names, max_size=4),
        "expires_in": st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=300_000)),
    }
)


@given(wanted=st.lists(wishes, max_size=4))
def test_whatever_is_made_is_found_and_travels(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[dict[str, Any]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_HOME", str(tmp_path_factory.mktemp("home")))
        made = [keys.create(**wish) for wish in wanted]
        ring = keys.read()
        assert [ring.find(text) for _, text in made] == [key for key, _ in made] == keys.listed()
        for key, _ in made:
            assert keys.from_json(json.loads(json.dumps(keys.to_json(key)))) == key


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_changes_a_key_and_never_another_error(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int
) -> None:
    content = bytearray(json.dumps(of(expires="2027-11-23T07:00:00Z", endpoints=["net"])).encode())
    content[int(place * len(content))] = byte
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("TIDEGATE_HOME", str(home))
        (home / "keys.json").write_bytes(content)
        try:
            (key,) = keys.listed()
        except StorageError:
            return
    assert key.endpoints
    assert key.expires


def test_a_key_is_found_in_microseconds() -> None:
    key, text = keys.create("acme", expires_in=HOUR)
    others = [replace(key, digest=f"{number:064x}") for number in range(10_000)]
    ring, sent = Keyring([*others, key]), text.encode()
    assert ring.find(sent) == key
    # The best of many: the machine has other work, too.
    assert min(timeit.repeat(lambda: ring.find(sent), number=200, repeat=100)) / 200 < 3e-6


class Far:
    """A Jobs API whose cluster keeps its keys here. What crosses is kept, as a job's command line and log would."""

    def __init__(self) -> None:
        self.crossed = ""

    def call(self, what: str, /, **arguments: Any) -> Any:
        sent = json.dumps(arguments)
        self.crossed += f"{what} {sent}\n"
        told = json.dumps(entry.CALLS[what](**json.loads(sent)))
        self.crossed += f"{told}\n"
        return json.loads(told)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    cluster = Far()
    with monkeypatch.context() as patch:
        patch.setattr(connection, "far", lambda: cluster)
        yield cluster


def test_over_http_the_text_of_a_key_stays_here(far: Far) -> None:
    key, text = create_key("acme", scopes=["admin"], endpoints=["net"], expires_in=HOUR)
    assert keys.listed() == list_keys() == [key]
    assert keys.read().find(text) == key
    with pytest.raises(SpecError):
        revoke_key(text)
    assert text.removeprefix(f"tg_{key.id}_") not in far.crossed
    assert revoke_key(key.id) == key
    assert list_keys() == []
    assert [line.split()[0] for line in far.crossed.splitlines()[::2]] == [
        *("add_key", "list_keys", "revoke_key", "list_keys")
    ]


def test_nearby_no_job_is_asked() -> None:
    key, text = create_key("acme")
    assert list_keys() == [key]
    assert keys.read().find(text) == key
    assert isinstance(revoke_key(key.id), Key)
    assert list_keys() == []
