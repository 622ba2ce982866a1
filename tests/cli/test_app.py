"""The command line: what it offers, and how it fails."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reengage.tracker.v1 import app_pb2
from services.cli.app import PANELS, app
from services.cli.calls import find_method, parse_request
from services.cli.connections import CallError
from tests.conftest import Database

SCENARIO = Path(__file__).parents[1] / "attribution" / "scenarios" / "01_basic_reengagement.yaml"


def run(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Returns the exit code, and all that was written."""
    result = CliRunner(env=environment).invoke(app, arguments)
    return result.exit_code, result.output


def test_help_names_every_command_and_the_exit_codes() -> None:
    code, output = run("--help")
    assert code == 0
    assert all(f" {command} " in output for names in PANELS.values() for command in names)
    assert "Exit codes" in output


@pytest.mark.parametrize("command", [command for names in PANELS.values() for command in names])
def test_every_command_has_help(command: str) -> None:
    code, output = run(command, "--help")
    assert code == 0
    assert f" {command} " in output


def test_an_unknown_command_is_told_the_nearest() -> None:
    code, output = run("tracker", "list")
    assert code == 2
    assert "'tracker'" in output
    assert "trackers" in output


@pytest.mark.process
def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from services.cli.app import app;"
        "CliRunner().invoke(app, ['--help']);"
        "print([name for name in ('grpc', 'aiohttp', 'asyncpg', 'google.protobuf') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.process
def test_a_call_loads_only_what_it_needs() -> None:
    """A command answers in less than 0.4 s; what a list takes as JSON, and nothing else."""
    program = (
        "import sys; from typer.testing import CliRunner; from services.cli.app import app;"
        "CliRunner().invoke(app, ['apps', 'list', '--json', '--target', '127.0.0.1:1']);"
        "assert 'grpc' in sys.modules;"
        "heavy = ('aiohttp', 'asyncpg', 'structlog', 'prometheus_client', 'rich', 'yaml', 'reengage.postback.v1');"
        "print([name for name in heavy if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_an_unknown_service_is_told_what_there_is(command: str) -> None:
    code, output = run(command, "billing", environment={"REENGAGE_ADMIN_DSN": "postgresql://"})
    assert code == 2
    assert "'billing'" in output
    assert "tracker, ingest, attribution, postback, gateway" in output


def test_a_service_that_does_not_answer_is_named_with_its_address_and_the_remedy() -> None:
    code, output = run("call", "tracker/ListApps", "--target", "127.0.0.1:1")
    assert code == 1
    assert "No tracker answers at 127.0.0.1:1" in output
    assert "make run" in output
    assert "REENGAGE_TRACKER_TARGET" in output


@pytest.mark.parametrize(
    "name", ["ingest/RecordBatch", "IngestService/RecordBatch", "/reengage.ingest.v1.IngestService/RecordBatch"]
)
def test_a_method_has_short_and_long_names(name: str) -> None:
    service, method = find_method(name)
    assert (service, method.full_name) == ("ingest", "reengage.ingest.v1.IngestService.RecordBatch")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ingest/Nothing", "it has RecordBatch, RecordStream"),
        ("ingest/RecordBach", "Did you mean RecordBatch"),
        ("nothing/RecordBatch", "services are tracker"),
        ("RecordBatch", "services are tracker"),
    ],
)
def test_an_unknown_method_is_told_what_there_is(name: str, remedy: str) -> None:
    with pytest.raises(CallError, match=remedy):
        find_method(name)


@pytest.mark.parametrize("text", ["{", '{"recordss": []}', '{"records": 7}'])
def test_json_that_does_not_fit_is_told_what_it_should_be(text: str) -> None:
    _, method = find_method("ingest/RecordBatch")
    with pytest.raises(CallError, match="RecordBatchRequest"):
        parse_request(method, text)


@pytest.mark.parametrize("path", ["settings.windows.click_device", "settings.windows.clickDevice"])
def test_field_masks_are_written_as_the_protos_do_or_as_json_does(path: str) -> None:
    _, method = find_method("tracker/UpdateApp")
    request = parse_request(method, json.dumps({"app": {"app_id": "a"}, "update_mask": path}))
    assert isinstance(request, app_pb2.UpdateAppRequest)
    assert request.update_mask.paths == ["settings.windows.click_device"]


def test_a_method_that_takes_a_stream_is_refused() -> None:
    code, output = run("call", "ingest/RecordStream")
    assert code == 1
    assert "takes a stream" in output


def test_simulate_hands_on_the_file_and_its_exit_code(tmp_path: Path) -> None:
    code, output = run("simulate", str(SCENARIO), "--check", "--json")
    assert code == 0
    assert all("outcome" in json.loads(line) for line in output.splitlines())
    broken = tmp_path / "broken.yaml"
    broken.write_text("app: 7\n")
    assert run("simulate", str(broken))[0] == 2


async def test_migrate_makes_a_schema_and_finds_it_up_to_date_then(database: Database) -> None:
    await database.postgres.create_database("empty")
    dsn = database.postgres.admin_dsn("empty")
    code, output = await asyncio.to_thread(run, "migrate", "ingest", "--admin-dsn", dsn)
    assert code == 0
    assert "applied 0001_record_log" in output
    code, output = await asyncio.to_thread(run, "migrate", "ingest", environment={"REENGAGE_ADMIN_DSN": dsn})
    assert code == 0
    assert "applied" not in output


def test_migrate_without_a_database_says_why(tmp_path: Path) -> None:
    code, output = run("migrate", "ingest", "--admin-dsn", f"postgresql://nobody@/none?host={tmp_path}")
    assert code == 1
    assert output.strip()
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["what-if", "shop"], "--from is missing"),
        (["what-if", "shop", "--from", "yesterday"], "--from should be a time"),
        (["what-if", "shop", "no.yaml", "--from", "2026-03-01"], "no.yaml: "),
        (["reattribute", "shop", "--from", "2026-03-01", "--to", "x"], "--to should be a time"),
        (["reattribute", "shop"], "--from is missing"),
        (["forget", "shop"], "'device_id'"),
    ],
)
def test_deciding_again_says_what_is_missing(arguments: list[str], said: str) -> None:
    code, output = run(*arguments)
    assert (code, said in output) == (2, True), output
