"""The cluster: which one, whether it answers, and whether it lets this machine in."""

from __future__ import annotations

from tidegate.doctor.finding import Finding, fine, warning, wrong
from tidegate.ray_token import DEFAULT, Token

CLUSTER, AUTHENTICATION = "cluster", "authentication"


def cluster(address: str, source: str, nodes: int | None, refusal: str) -> Finding:
    """`source` says who named `address`; `nodes` is None where only the dashboard was asked; `refusal` says why not."""
    if not address:
        return warning(CLUSTER, "none is running here and RAY_ADDRESS names none", "`tidegate up` starts one")
    where = f"{address} ({source})"
    if refusal:
        remedy = "`tidegate down`, then `tidegate up`" if source == "tidegate up" else "correct RAY_ADDRESS or unset it"
        return wrong(CLUSTER, f"{where}: {refusal}", remedy)
    counted = "" if nodes is None else f", {nodes} node{'s' * (nodes != 1)}"
    return fine(CLUSTER, f"{where} answers{counted}")


def authentication(mode: str, token: Token | None, asks: bool | None, accepted: bool | None, is_open: bool) -> Finding:
    """Whether the cluster asks for a token (`asks`), and for this one (`accepted`); None where that cannot be seen.

    `mode` is RAY_AUTH_MODE here; `is_open` tells that the cluster can be reached from other machines.
    """
    name = AUTHENTICATION
    if mode not in ("", "token", "disabled"):
        return wrong(name, f"RAY_AUTH_MODE is {mode!r}", "set it to token or disabled, or unset it")
    if asks and token is None:
        return wrong(name, "the cluster asks for a token and there is none here", f"copy its {DEFAULT} to here")
    if asks and accepted is False:
        return wrong(name, f"the token in {_source(token)} is not the cluster's", f"copy its {DEFAULT} to here")
    if asks and mode == "disabled":
        return wrong(name, "the cluster asks for a token and RAY_AUTH_MODE=disabled sends none", "unset RAY_AUTH_MODE")
    if token is not None and token.others_may_read():
        return warning(name, f"{token.source} can be read by other users", f"chmod 600 {token.source}")
    if asks is False and is_open:
        return warning(name, "whoever reaches the cluster runs code on it", "start it with RAY_AUTH_MODE=token")
    if asks is False:
        return fine(name, "disabled in the cluster, which is on loopback")
    if token is None:
        return fine(name, f"no token yet; `tidegate up` makes {DEFAULT}")
    return fine(name, f"token in {_source(token)}{', which the cluster takes' if accepted else ''}")


def _source(token: Token | None) -> str:
    return token.source if token else "nothing"
