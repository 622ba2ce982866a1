"""Commands about records, against an ingest that lists as told."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from reengage.ingest.v1 import record_pb2, rejected_record_pb2, service_pb2_grpc, warned_record_pb2
from services.cli.app import app


class Scripted(service_pb2_grpc.IngestServiceServicer):
    """An ingest that has refused and warned of one record of `shop`."""

    async def ListWarnings(
        self, request: warned_record_pb2.ListWarningsRequest, context: Any
    ) -> warned_record_pb2.ListWarningsResponse:
        response = warned_record_pb2.ListWarningsResponse()
        if request.app_id == "shop":
            warned = response.warned.add(record_id="r[1]", kind="event")
            warned.accept_time.FromJsonString("2026-03-01T12:00:00Z")
            warned.warnings.add(field="data.event_data.sum", code="INVALID_AMOUNT", message="no revenue")
            warned.warnings.add(field="data.usertime", code="INVALID_TIME", message="left out")
        return response

    async def ListRejected(
        self, request: rejected_record_pb2.ListRejectedRequest, context: Any
    ) -> rejected_record_pb2.ListRejectedResponse:
        response = rejected_record_pb2.ListRejectedResponse()
        if request.app_id == "shop":
            refused = response.rejected.add(record=record_pb2.Record(app_id="shop", record_id="r[2]"))
            refused.reject_time.FromJsonString("2026-03-01T12:00:00Z")
            refused.violations.add(field="event.event_name", reason="REQUIRED", description="must be set")
        return response


async def run(*arguments: str) -> tuple[int, str]:
    server = grpc.aio.server()
    service_pb2_grpc.add_IngestServiceServicer_to_server(Scripted(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    command = ["records", *arguments, "--target", f"127.0.0.1:{port}"]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    await server.stop(0)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("warnings", ("2026-03-01", "event", "r[1]", "data.event_data.sum", "INVALID_AMOUNT", "INVALID_TIME")),
        ("refused", ("2026-03-01", "unknown", "r[2]", "event.event_name", "REQUIRED", "must be set")),
    ],
)
async def test_records_are_listed_for_people(command: str, words: tuple[str, ...]) -> None:
    code, output = await run(command, "shop")
    assert code == 0
    assert all(word in output for word in words)
    code, output = await run(command, "quiet")
    assert (code, output.strip().rpartition(": ")[2]) == (0, "none")


async def test_records_are_listed_for_programs() -> None:
    code, output = await run("warnings", "shop", "--json")
    [warned] = json.loads(output)["warned"]
    assert (code, warned["record_id"], len(warned["warnings"])) == (0, "r[1]", 2)
    code, output = await run("refused", "shop", "--json")
    [refused] = json.loads(output)["rejected"]
    assert (code, refused["record"]["record_id"]) == (0, "r[2]")
