"""Bodies that are packed, both ways, with what other programs make of them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.compression import WORTH_BYTES, packed, unpacked
from tidegate.serving.exchange import HttpError, Response

LIMIT = 1000
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "X-GZip": gzip.compress,
    " DEFLATE ": zlib.compress,
}
UNPACKERS: dict[bytes, Callable[[bytes], bytes]] = {b"gzip": gzip.decompress, b"deflate": zlib.decompress}
LARGE = Response(200, b"abcd" * WORTH_BYTES, ((b"x-made-by", b"test"),), b"text/plain")


def refused(body: bytes, encoding: bytes = b"gzip", limit: int = LIMIT) -> HttpError:
    with pytest.raises(HttpError) as caught:
        unpacked(body, encoding, limit)
    return caught.value


@pytest.mark.parametrize("encoding", PACKERS)
@given(data=st.binary(max_size=LIMIT))
def test_what_was_packed_comes_out_again(encoding: str, data: bytes) -> None:
    assert unpacked(PACKERS[encoding](data), encoding.encode(), LIMIT) == data


@pytest.mark.parametrize("encoding", [b"", b"identity", b" Identity"])
def test_a_body_as_it_is_stays_so(encoding: bytes) -> None:
    assert unpacked(b"\x1f\x8b as it is", encoding, LIMIT) == b"\x1f\x8b as it is"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_the_limit_is_on_what_comes_out(pack: Callable[[bytes], bytes]) -> None:
    assert unpacked(pack(b"x" * LIMIT), b"gzip", LIMIT) == b"x" * LIMIT
    error = refused(pack(b"x" * (LIMIT + 1)))
    assert error.status == 413
    assert str(LIMIT) in error.message


def test_a_bomb_is_given_up_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(64 * 2**20), 9)
    made: list[int] = []
    real = zlib.decompressobj

    class Counting:
        """zlib's own, and how much came out of it."""

        def __init__(self, bits: int) -> None:
            self._real = real(bits)

        def decompress(self, data: bytes, most: int = 0) -> bytes:
            out = self._real.decompress(data, most)
            made.append(len(out))
            return out

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    assert len(bomb) < 100_000
    assert refused(bomb, b"deflate").status == 413
    assert sum(made) <= LIMIT + 1


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"*", b"\xff"])
def test_another_encoding_is_refused_with_those_that_are_taken(encoding: bytes) -> None:
    error = refused(b"anything", encoding)
    assert error.status == 415
    assert encoding.decode("latin-1") in error.message
    assert dict(error.headers) == {b"accept-encoding": b"gzip, deflate"}


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_body_that_is_cut_off_is_refused(cut: int) -> None:
    error = refused(gzip.compress(b"hello", mtime=0)[:-cut])
    assert error.status == 400
    assert "cut off" in error.message


def test_a_damaged_body_is_refused() -> None:
    whole = gzip.compress(b"hello" * 10, mtime=0)
    assert "bytes follow" in refused(whole + b"x").message
    # A second member is not quietly left out.
    assert "bytes follow" in refused(whole + whole).message
    assert refused(whole[:-8] + bytes(8)).status == 400
    assert refused(b"no gzip at all").status == 400


@given(data=st.binary(max_size=60), encoding=st.sampled_from([b"gzip", b"deflate", b"x-gzip", b"identity"]))
def test_any_body_is_taken_or_refused(data: bytes, encoding: bytes) -> None:
    try:
        size, status = len(unpacked(data, encoding, LIMIT)), 200
    except HttpError as error:
        size, status = 0, int(error.status)
    assert size <= LIMIT
    assert status in (200, 400, 413)


@pytest.mark.parametrize(
    ("accepted", "name"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"deflate, gzip", b"gzip"),
        (b"br;q=1.0, GZIP ; q=0.5, *;q=0.1", b"gzip"),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"gzip; q=0.000 ,deflate;q=0.001", b"deflate"),
        (b"gzip;q=0.01", b"gzip"),
        (b"gzip;Q=1", b"gzip"),
    ],
)
def test_an_answer_is_packed_as_its_client_takes_it(accepted: bytes, name: bytes) -> None:
    answer = packed(LARGE, accepted)
    assert UNPACKERS[name](answer.body) == LARGE.body
    assert len(answer.body) < len(LARGE.body)
    assert answer.headers == (*LARGE.headers, (b"content-encoding", name), (b"vary", b"accept-encoding"))
    assert (answer.status, answer.content_type) == (LARGE.status, LARGE.content_type)


@pytest.mark.parametrize("accepted", [b"", b"br", b"identity", b"gzip;q=0", b"gzip;q=0.0, deflate; q=0", b"gzipped"])
def test_an_answer_stays_as_it_is_for_who_takes_nothing_else(accepted: bytes) -> None:
    assert packed(LARGE, accepted) == LARGE


def test_a_small_answer_is_not_worth_it() -> None:
    small = LARGE._replace(body=LARGE.body[: WORTH_BYTES - 1])
    assert packed(small, b"gzip") is small
    assert packed(LARGE._replace(body=LARGE.body[:WORTH_BYTES]), b"gzip").headers != LARGE.headers


@given(
    st.lists(st.sampled_from(["gzip", "deflate", ";", "q=", "0", "1", ".5", ",", " ", "*"]), max_size=12).map("".join)
)
def test_whatever_is_accepted_the_answer_can_be_read(accepted: str) -> None:
    answer = packed(LARGE, accepted.encode())
    encoding = dict(answer.headers).get(b"content-encoding", b"identity")
    assert unpacked(answer.body, encoding, len(LARGE.body)) == LARGE.body
    assert encoding == b"identity" or encoding.decode() in accepted
