"""YAML and JSON that people write, read strictly: what could be understood in two ways is refused.

Both formats allow a key once, and their usual readers let the last one win without a word: half of a spec is gone then.
"""

import json
from typing import Any

import yaml

_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH = 32  # nothing that is read here needs a tenth of it, and readers that call themselves have an end


def read_yaml(text: bytes | str, *, aliases: bool = True) -> Any:
    """The data of a YAML text. Raises ValueError, in one line, for what is not YAML or has a key twice.

    Args:
        aliases: whether `*name` may stand for a value. From a stranger it may not: a small text can mean a huge value.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        _check_events(text, aliases)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_keys(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: also a date of month 13, or not UTF-8
        raise ValueError(" ".join(str(error).split())) from None


def _check_events(text: str, aliases: bool) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise ValueError("aliases are not accepted")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise ValueError("nested too deep")


def _check_keys(root: yaml.Node) -> None:
    """Raise ValueError for a mapping that has a key twice."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue  # an alias is the node that it names
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = set[tuple[str, str]]()
        for key, value in node.value:
            waiting += [key, value]
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
                keys.add((key.tag, key.value))


def read_json(text: bytes | str) -> Any:
    """The data of a JSON text. Raises ValueError, in one line, for what is not JSON, has a key twice, or cannot be
    written again: NaN, half of a surrogate pair."""
    try:
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
        json.dumps(data, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found
