"""YAML from outside: strings, numbers, booleans, null, lists and mappings, and nothing that can hang or surprise.

Only ``true`` and ``false`` are booleans (YAML 1.1 takes ``no`` and ``off`` for one, too), dates stay text, and a text
whose aliases stand for more than :data:`MOST_NODES` values is refused before it is built.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from artifacts.records import DataError

MOST_NODES = 200_000
"""Most values that a text may stand for, aliases written out."""
MOST_DEPTH = 50
MOST_DIGITS = 400
"""Most characters of a number: Python takes minutes to read millions of digits, and refuses 4,301."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    "float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "merge": (r"^<<$", "<"),
}


class YamlFault(DataError):
    """Text that cannot be read as YAML; the caller adds where it comes from."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {problem}" if line else problem)
        self.problem = problem
        self.line = line


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, and ``<<``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """PyYAML writes the keys of a ``<<`` into the node itself; in the tree they would look as if given twice."""
        return super().construct_mapping(_copied(node), deep)


def _copied(node: yaml.Node) -> Any:
    """The mapping, and those that it merges, with pairs that may be changed."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(key, _copied(value) if key.tag == _TAG + "merge" else value) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [_copied(one) for one in node.value], node.start_mark, node.end_mark)
    return node


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list(_first))


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


_Loader.add_constructor(_TAG + "int", _whole)


class _Words(_Loader):
    """Every scalar as it is written: class names are ``no``, ``007``, ``1.10``."""


_Words.yaml_implicit_resolvers = {}


def read_yaml(text: str, *, words: bool = False) -> tuple[Any, yaml.Node | None]:
    """The value of ``text``, and its tree of nodes for the lines. ``words``: all scalars stay text.

    Raises :class:`YamlFault`, with the line where it is known.
    """
    try:
        loader = (_Words if words else _Loader)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            _weigh(node, {}, set(), 0)
            return loader.construct_document(node), node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlFault(error.problem or str(error), mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        problem = f"the character {chr(error.character)!r} is not allowed"
        raise YamlFault(problem, text[: error.position].count("\n") + 1) from error
    except RecursionError as error:
        raise YamlFault("it is nested too deeply, or within itself") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, YamlFault):
            raise
        raise YamlFault(str(error)) from error


def _weigh(node: yaml.Node, known: dict[int, int], above: set[int], depth: int) -> int:
    """How many values ``node`` stands for. Raises :class:`YamlFault` for too many, too deep, within itself."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag in (_TAG + "int", _TAG + "float") and len(node.value) > MOST_DIGITS:
            raise YamlFault(f"a number of {len(node.value):,} characters", line)
        return 1
    if id(node) in known:
        return known[id(node)]
    if id(node) in above or depth > MOST_DEPTH:
        raise YamlFault("it is nested too deeply, or within itself", line)
    above.add(id(node))
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1 + sum(_weigh(part, known, above, depth + 1) for part in parts)
    above.discard(id(node))
    if total > MOST_NODES:
        raise YamlFault(f"its aliases stand for more than {MOST_NODES:,} values", line)
    known[id(node)] = total
    return total
