"""Reading a spec from YAML or a plain mapping, with every mistake of it in one error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from tidegate.errors import SpecError
from tidegate.spec.base import Part
from tidegate.spec.mistakes import describe, mistakes

AnyPart = TypeVar("AnyPart", bound=Part)


def parse(kind: type[AnyPart], document: object, *, source: str) -> AnyPart:
    """Validate a plain document as `kind`.

    Raises SpecError that lists every mistake with its path, what was found and what to write; `source` names the
    document in the message.
    """
    if not isinstance(document, Mapping):
        raise SpecError(f"{source} holds {describe(document)}", expected="a mapping of keys to values")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = mistakes(kind, error)
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise SpecError(f"{source} has {count}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def read(kind: type[AnyPart], path: str | Path) -> AnyPart:
    """Read and validate a YAML file. Raises SpecError."""
    return parse(kind, load_yaml(Path(path)), source=str(path))


def load_yaml(path: Path) -> Any:
    """The plain document of a YAML file. Raises SpecError for a missing, unreadable or malformed file."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}", remedy="give the path of a spec file") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not text", expected="YAML in UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that a repeated key is refused and 3e-4 is a number (YAML 1.1 wants 3.0e-4)."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError):
            # PyYAML lets the error of a conversion through as it is: of a 13th month, or `!!int x`.
            tag, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.YAMLError(f"{node.value!r} in line {line} is no {tag}") from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
