"""Compressed bodies: gzip and deflate (zlib), both ways, within the limit of the body as it is when unpacked."""

from __future__ import annotations

import gzip
import re
import zlib
from http import HTTPStatus

from tidegate.serving.exchange import HttpError, Response, too_large

WORTH_BYTES = 8 * 1024
"""A smaller answer leaves as it is: packing it would take longer than sending it."""
_LEVEL = 1
_ANY_HEADER = 32  # zlib's: gzip or zlib, whichever it is


def unpacked(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Raises HttpError: 415 for another encoding, 413 beyond `limit` bytes, 400 for a damaged body."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name not in (b"gzip", b"deflate", b"x-gzip"):
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body has the encoding {encoding.decode('latin-1')!r}; gzip, deflate and identity are taken",
            [(b"accept-encoding", b"gzip, deflate")],
        )
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | _ANY_HEADER)
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise _damaged(name, str(error)) from error
    if len(data) > limit:
        raise too_large(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise _damaged(name, "it is cut off" if not unpacker.eof else "bytes follow its end")
    return data


def _damaged(name: bytes, reason: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, f"the body cannot be unpacked as {name.decode()}: {reason}")


def packed(response: Response, accepted: bytes) -> Response:
    """The response as a client that sent this `Accept-Encoding` takes it."""
    if len(response.body) < WORTH_BYTES:
        return response
    names = {word.strip().lower() for word in accepted.split(b",") if not _REFUSED.search(word)}
    names = {name.partition(b";")[0].strip() for name in names}
    if b"gzip" in names:
        body, name = gzip.compress(response.body, _LEVEL, mtime=0), b"gzip"
    elif b"deflate" in names:
        body, name = zlib.compress(response.body, _LEVEL), b"deflate"
    else:
        return response
    extra = ((b"content-encoding", name), (b"vary", b"accept-encoding"))
    return response._replace(body=body, headers=(*response.headers, *extra))


_REFUSED = re.compile(rb";\s*q\s*=\s*0(\.0*)?\s*$")
