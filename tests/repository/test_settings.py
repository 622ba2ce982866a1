"""The list of settings, docs/settings.md, names every field there is, and no module and no test that there is not."""

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import pytest
from google.protobuf.descriptor import Descriptor

from reengage.postback.v1.configuration_pb2 import Configuration
from reengage.tracker.v1.snapshot_pb2 import Resource
from services.postback.adapters.adapter import ADAPTERS
from tests.support.processes import ROOT

COMMON = "Every resource of tracker"


class Row(NamedTuple):
    """A field in a table: its modules are below services/, its tests, as `file::name`, below tests/."""

    field: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]


def tables() -> dict[str, list[Row]]:
    """Returns the rows of each table, by its heading."""
    found: dict[str, list[Row]] = {}
    for section in (ROOT / "docs" / "settings.md").read_text().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
        assert {len(row) for row in cells} == {5}, heading
        found[heading] = [Row(named(field)[0], named(modules), named(tests)) for field, _, _, modules, tests in cells]
    return found


def named(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def messages(descriptor: Descriptor) -> Iterator[Descriptor]:
    """Yields the messages of ours that the fields of one hold, at any depth."""
    for field in descriptor.fields:
        held = field.message_type
        if held is not None and held.full_name.startswith("reengage.") and not held.GetOptions().map_entry:
            yield held
            yield from messages(held)


def settings() -> Mapping[str, list[str]]:
    """Returns the fields of every resource that tracker keeps, of configurations and of adapters, by their table."""
    of_tracker = {each.name: [field.name for field in each.fields] for each in messages(Resource.DESCRIPTOR)}
    of_adapters = {
        f"Adapter {name}": [field.name for field in each.description.fields] for name, each in ADAPTERS.items()
    }
    configuration = Configuration.DESCRIPTOR
    return {**of_tracker, configuration.name: [field.name for field in configuration.fields], **of_adapters}


TABLES, SETTINGS = tables(), settings()
KINDS = {field.message_type.name for field in Resource.DESCRIPTOR.fields if field.message_type is not None}
"""The messages that have the fields of every resource."""
ROWS = [pytest.param(row, id=f"{table}.{row.field}") for table, rows in TABLES.items() for row in rows]


def test_there_is_a_table_for_each() -> None:
    assert set(TABLES) == {COMMON, *SETTINGS}


@pytest.mark.parametrize("table", SETTINGS)
def test_a_table_has_every_field_once(table: str) -> None:
    rows = [row.field for row in TABLES[table]]
    if table in KINDS:
        rows += [row.field for row in TABLES[COMMON] if row.field in SETTINGS[table] and row.field not in rows]
    assert sorted(rows) == sorted(SETTINGS[table])


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_modules_that_read_it(row: Row) -> None:
    texts = [(ROOT / "services" / module).read_text() for module in row.modules]
    assert any(re.search(rf"\b{row.field}\b", text) for text in texts)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_there_are(row: Row) -> None:
    assert row.tests
    assert [test for test in row.tests if test.partition("::")[2] not in names_of_tests(test.partition("::")[0])] == []


@functools.cache
def names_of_tests(file: str) -> frozenset[str]:
    """Returns the names of the tests in a file."""
    body: Iterable[ast.stmt] = ast.parse((ROOT / "tests" / file).read_text()).body
    return frozenset(each.name for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
