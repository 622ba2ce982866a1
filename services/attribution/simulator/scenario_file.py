"""Reads a scenario from YAML or JSON, and names every problem with its line.

JSON is parsed as JSON, which is fast. Only YAML knows the lines of its values, so a file that does not fit is read
again as YAML.
"""

import json
import re
from typing import Any

import yaml

from libs.yaml_lines import Problem, YamlError, is_null, line_of, read_yaml
from services.attribution.simulator.collector import collector_paused
from services.attribution.simulator.scenario import Scenario
from services.attribution.simulator.scenario_reader import Misfit, ScenarioReader
from services.attribution.simulator.values import Unquoted

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATES = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


class ScenarioError(Exception):
    """A file that is no scenario; `problems` are all that were found, in the order of their lines."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"line {line}: {message}" for line, message in problems))
        self.problems = problems


def read_scenario(text: str) -> Scenario:
    """Returns the scenario in a text of YAML or JSON. Raises ScenarioError with every problem found."""
    with collector_paused():
        try:
            values = _parse_json(text)
        except (ValueError, RecursionError):
            return _read_yaml(text)
        reader = ScenarioReader()
        scenario = reader.read(values)
        return _read_yaml(text) if scenario is None or reader.misfits else scenario


def _parse_json(text: str) -> Any:
    """Returns the plain values of a JSON text. Raises ValueError when it is none, or needs a closer look."""
    if not text.lstrip().startswith("{") or _ESCAPED_SURROGATE.search(text):
        raise ValueError
    return json.loads(
        text, object_pairs_hook=_unrepeated, parse_int=Unquoted, parse_float=Unquoted, parse_constant=Unquoted
    )


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _read_yaml(text: str) -> Scenario:
    if text.lstrip().startswith("{"):
        # JSON is YAML except for tabs between tokens and for escaped surrogate pairs.
        text = _SURROGATES.sub(_escaped_character, text.replace("\t", " "))
    try:
        document = read_yaml(text, format_name="YAML or JSON", typed=False)
    except YamlError as error:
        raise ScenarioError([error.problem]) from error
    values = _Values(document.root)
    reader = ScenarioReader()
    scenario = reader.read(values.root)
    problems = document.problems + [Problem(values.line(misfit), misfit.message) for misfit in reader.misfits]
    if scenario is None or problems:
        raise ScenarioError(sorted(problems))
    return scenario


def _escaped_character(pair: re.Match[str]) -> str:
    high, low = (int(half, 16) for half in pair.groups())
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08X}"


class _Values:
    """The plain values of a YAML text, each found again by the line it stands on."""

    def __init__(self, root: yaml.Node) -> None:
        self._root = root
        self._values: dict[int, Any] = {}
        self._nodes: dict[int, yaml.Node] = {}
        self.root = self._value(root)

    def line(self, misfit: Misfit) -> int:
        """Returns the line of what does not fit."""
        node = self._nodes.get(id(misfit.container), self._root)
        if misfit.key is not None and isinstance(node, yaml.SequenceNode):
            node = node.value[misfit.key]
        elif misfit.key is not None:
            node = next(pair[not misfit.of_key] for pair in node.value if pair[0].value == misfit.key)
        return line_of(node)

    def _value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            if node.style:
                return node.value
            return None if is_null(node) else Unquoted(node.value)
        if id(node) in self._values:  # an alias of a value that was made already
            return self._values[id(node)]
        found: Any
        if isinstance(node, yaml.SequenceNode):
            found = [self._value(child) for child in node.value]
        else:
            found = {}
            for key, child in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value not in found:
                    found[key.value] = self._value(child)
        self._values[id(node)] = found
        self._nodes[id(found)] = node
        return found
