"""Python and Ray, here and in the cluster."""

from __future__ import annotations

from importlib import metadata

from tidegate.doctor.finding import Finding, fine, warning, wrong
from tidegate.releases import PYTHON, RAY, against


def python(version: str) -> Finding:
    how = against(version, PYTHON)
    if not how:
        return fine("Python", version)
    told = f"{version} is {how} than the tested {PYTHON.text()}"
    remedy = f"make Tidegate's environment anew with Python {PYTHON.text()}"
    return wrong("Python", told, remedy) if how == "older" else warning("Python", told, remedy)


def installed_ray() -> str | None:
    """The release of Ray in this environment; None when there is none."""
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return None


def ray(version: str | None) -> Finding:
    first, end = (".".join(map(str, bound)) for bound in RAY)
    remedy = f'pip install "ray[data,train,serve]>={first},<{end}"'
    if version is None:
        return wrong("Ray", "not installed in this environment", remedy)
    how = against(version, RAY)
    return warning("Ray", f"{version} is {how} than the tested {RAY.text()}", remedy) if how else fine("Ray", version)


def cluster_ray(theirs: str, ours: str) -> Finding:
    """Drivers and nodes of one cluster must run the very same Ray."""
    if theirs == ours:
        return fine("cluster's Ray", theirs)
    return wrong("cluster's Ray", f"{theirs}, and {ours} here", f'pip install "ray[data,train,serve]=={theirs}" here')
