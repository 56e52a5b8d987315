"""The fields of the form for a new job, from the JSON schema of the spec."""

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.spec import Spec

Kind = Literal["text", "number", "switch", "choice", "lines", "data"]
_LEFT_OUT = ("version",)


@dataclass(frozen=True)
class Field:
    """One field: a key of the spec that holds a value, not further keys.

    Attributes:
        path: dotted, as `--set` writes it.
        kind: data: a value of any shape, written as JSON.
        default: as the field shows it; None where there is none.
    """

    path: str
    kind: Kind
    default: Any
    choices: tuple[str, ...] = ()
    required: bool = False
    whole: bool = False

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def label(self) -> str:
        return self.path.rpartition(".")[2]


def sections() -> list[tuple[str, list[Field]]]:
    """The fields by the section of the spec that they belong to: what every job needs comes first."""
    found: dict[str, list[Field]] = {"input": [], "": []}
    for field in fields():
        found.setdefault(field.section, []).append(field)
    return list(found.items())


def fields() -> list[Field]:
    """All of them, in the order of the spec."""
    schema = Spec.model_json_schema()
    defaults = Spec.model_validate({"input": {"uris": ["x"]}}).model_dump(mode="json")
    return list(_of(schema, schema, defaults, "", True))


def _of(schema: dict[str, Any], root: dict[str, Any], defaults: Any, path: str, required: bool) -> list[Field]:
    found: list[Field] = []
    for name, part in schema["properties"].items():
        if not path and name in _LEFT_OUT:
            continue
        here = f"{path}.{name}".lstrip(".")
        part = _plain(part, root)
        default = defaults.get(name) if isinstance(defaults, dict) else None
        must = required and name in schema.get("required", [])
        if "properties" in part:
            found += _of(part, root, default, here, must)
        else:
            found.append(_field(here, part, None if must else default, must))
    return found


def _field(path: str, part: dict[str, Any], default: Any, required: bool) -> Field:
    if "enum" in part or "const" in part:
        choices = tuple(str(each) for each in part.get("enum", [part.get("const")]))
        return Field(path, "choice", default, choices)
    kind = part.get("type")
    if kind == "boolean":
        return Field(path, "switch", default)
    if kind in ("integer", "number"):
        return Field(path, "number", default, required=required, whole=kind == "integer")
    if kind == "array" and part.get("items", {}).get("type") == "string":
        return Field(path, "lines", "\n".join(default or []), required=required)
    if kind == "string":
        return Field(path, "text", default, required=required)
    return Field(path, "data", default, required=required)


def _plain(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A schema without references and without the alternative `null`."""
    if "$ref" in part:
        return _plain(root["$defs"][part["$ref"].rpartition("/")[2]], root)
    if "anyOf" in part:
        rest = [each for each in part["anyOf"] if each.get("type") != "null"]
        if len(rest) == 1:
            return _plain(rest[0], root)
    return part
