"""Reads YAML of which every value knows its line, so that a problem can be named with the line it is on.

`read_yaml` returns nodes, not values: the reader of a format decides what a value means. It reads JSON, too, which is
YAML except for tabs between tokens and for escaped surrogate pairs.
"""

from typing import NamedTuple

import yaml

MAX_DEPTH = 100
"""Lists and objects inside each other, aliases followed. A reader may call itself for each."""
MAX_NODES_OF_ALIASES = 1_000_000
"""Values that aliases repeat, all together: without a bound, ten lines could stand for a billion values."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TYPELESS_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_NULL = "tag:yaml.org,2002:null"
_NULL_TEXTS = frozenset({"", "~", "null", "Null", "NULL"})


class Problem(NamedTuple):
    """Something that does not fit, and its line in the file (counted from 1)."""

    line: int
    message: str


class YamlError(Exception):
    """A text that cannot be read at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"line {problem.line}: {problem.message}")
        self.problem = problem


class Document(NamedTuple):
    """A text as nodes, and the problems of its keys: repeated ones, and lists or objects in the place of a key."""

    root: yaml.Node
    problems: list[Problem]


def read_yaml(text: str, *, format_name: str = "YAML", typed: bool = True) -> Document:
    """Returns the one document of a text. Raises YamlError, whose message calls the format by its name.

    Nodes have the tags of what they look like (a number, a flag) only where they are `typed`, which takes longer.
    """
    try:
        has_aliases = _check_events(text)
        root = yaml.compose(text, Loader=_LOADER if typed else _TYPELESS_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        if "nesting depth" in (error.problem or ""):  # a limit of the parser's own, which it meets as it looks ahead
            raise _too_deep(line) from error
        raise YamlError(Problem(line, f"not {format_name}: {error.problem or error.context}")) from error
    except yaml.YAMLError as error:
        raise YamlError(Problem(1, f"not {format_name}: {error}")) from error
    if root is None:
        raise YamlError(Problem(1, "the file is empty"))
    if has_aliases:
        _Extents().measure(root)
    problems: list[Problem] = []
    _check_keys(root, problems, set())
    return Document(root, problems)


def line_of(node: yaml.Node) -> int:
    """Returns the line that a node begins on; 1 for a node that was not read from a text."""
    return node.start_mark.line + 1 if node.start_mark is not None else 1


def is_null(node: yaml.Node) -> bool:
    """Returns whether a node is null: no value, `~` or `null`, without quotes."""
    return bool(node.tag == _NULL) or (
        isinstance(node, yaml.ScalarNode) and not node.style and node.value in _NULL_TEXTS
    )


def _check_events(text: str) -> bool:
    """Returns whether the text has aliases. Raises YamlError if it is nested too deeply.

    The composer calls itself for each level, in C: there is no exception when the stack ends, but a crash.
    """
    depth, has_aliases = 0, False
    for event in yaml.parse(text, Loader=_TYPELESS_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep(event.start_mark.line + 1 if event.start_mark else 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            has_aliases = True
    return has_aliases


def _too_deep(line: int) -> YamlError:
    return YamlError(Problem(line, f"nested too deeply: at most {MAX_DEPTH} levels"))


class _Extent(NamedTuple):
    """The number of values and of levels in a node, each alias counted as what it stands for."""

    nodes: int
    depth: int


class _Extents:
    """The sizes of nodes. An anchor comes before its aliases, so an alias is measured already, or inside itself."""

    def __init__(self) -> None:
        self._measured: dict[int, _Extent | None] = {}
        self._repeated = 0

    def measure(self, node: yaml.Node) -> _Extent:
        """Returns the extent of a node. Raises YamlError when aliases make it too large, too deep or endless."""
        if id(node) in self._measured:
            return self._repeat(node)
        if isinstance(node, yaml.ScalarNode):
            self._measured[id(node)] = _Extent(1, 0)
            return _Extent(1, 0)
        self._measured[id(node)] = None
        nodes, depth = 1, 0
        for child in _children(node):
            inside = self.measure(child)
            nodes, depth = nodes + inside.nodes, max(depth, inside.depth)
        if depth >= MAX_DEPTH:
            raise _too_deep(line_of(node))
        extent = self._measured[id(node)] = _Extent(nodes, depth + 1)
        return extent

    def _repeat(self, node: yaml.Node) -> _Extent:
        extent = self._measured[id(node)]
        if extent is None:
            raise YamlError(Problem(line_of(node), "an alias stands for something that contains it"))
        self._repeated += extent.nodes
        if self._repeated > MAX_NODES_OF_ALIASES:
            raise YamlError(Problem(line_of(node), f"aliases repeat more than {MAX_NODES_OF_ALIASES:,} values"))
        return extent


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value)


def _check_keys(node: yaml.Node, problems: list[Problem], seen: set[int]) -> None:
    """Adds the problems of all keys in a node; what an alias repeats is looked at once."""
    if isinstance(node, yaml.ScalarNode) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(child, problems, seen)
        return
    names = set()
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            problems.append(Problem(line_of(key), "a key should be a text"))
        elif key.value in names:
            problems.append(Problem(line_of(key), f"key {key.value!r} is repeated"))
        else:
            names.add(key.value)
            _check_keys(child, problems, seen)
