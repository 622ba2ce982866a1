"""A YAML text is read with the lines of its values; a hostile one is refused, not followed."""

import pytest

from libs import yaml_lines
from libs.yaml_lines import Document, Problem, YamlError, is_null, line_of, read_yaml


def test_each_value_has_its_line() -> None:
    root = read_yaml("a: 1\nb:\n  - x\n  - {c: y}\n").root
    (_, first), (_, items) = root.value
    assert [line_of(node) for node in (root, first, items, *items.value)] == [1, 1, 3, 3, 4]


@pytest.mark.parametrize(
    ("text", "null"),
    [
        pytest.param("a:", True, id="nothing"),
        pytest.param("a: ~", True, id="tilde"),
        pytest.param("a: null", True, id="null"),
        pytest.param("a: 'null'", False, id="in quotes"),
        pytest.param("a: ''", False, id="empty text"),
        pytest.param("a: {}", False, id="empty object"),
    ],
)
def test_null(text: str, null: bool) -> None:
    ((_, value),) = read_yaml(text).root.value
    assert is_null(value) is null


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", Problem(1, "the file is empty"), id="empty"),
        pytest.param("a: 1\nb: ]\n", Problem(2, "not YAML: did not find expected node content"), id="syntax"),
        pytest.param("a: *b", Problem(1, "not YAML: found undefined alias"), id="unknown alias"),
        pytest.param("a: 1\n---\nb: 2", Problem(2, "not YAML: but found another document"), id="two documents"),
        pytest.param("a: 1\nb: &b [*b]", Problem(2, "an alias stands for something that contains it"), id="endless"),
        pytest.param(
            "\n" + "[" * 200_000, Problem(2, "nested too deeply: at most 100 levels"), id="deep enough to end the stack"
        ),
        pytest.param(
            "a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 101)),
            Problem(101, "nested too deeply: at most 100 levels"),
            id="deep by aliases",
        ),
        pytest.param(
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
            Problem(6, "aliases repeat more than 1,000,000 values"),
            id="a billion values",
        ),
    ],
)
def test_refused(text: str, problem: Problem) -> None:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert caught.value.problem == problem


def test_message_calls_the_format_by_its_name() -> None:
    with pytest.raises(YamlError, match="line 1: not YAML or JSON: "):
        read_yaml("]", format_name="YAML or JSON")


def test_as_deep_as_may_be_is_read() -> None:
    depth = yaml_lines.MAX_DEPTH
    assert isinstance(read_yaml("[" * depth + "]" * depth), Document)


def test_an_alias_is_the_node_that_it_stands_for() -> None:
    (_, here), (_, there) = read_yaml("a: &a {b: 1}\nc: *a").root.value
    assert there is here


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        pytest.param("a: 1\nb: 2\na: 3", [Problem(3, "key 'a' is repeated")], id="repeated"),
        pytest.param("- x\n- [{a: 1,\n   a: 2}]", [Problem(3, "key 'a' is repeated")], id="repeated inside"),
        pytest.param("a: &b {c: 1, c: 2}\nd: *b", [Problem(1, "key 'c' is repeated")], id="once for all aliases"),
        pytest.param("? [a]\n: 1", [Problem(1, "a key should be a text")], id="a list as key"),
        pytest.param("a: 1\nb: {a: 2}", [], id="the same in another object"),
    ],
)
def test_keys(text: str, problems: list[Problem]) -> None:
    assert read_yaml(text).problems == problems
