"""Erasures: starting one, following it to its end, showing it."""

from typing import Any

import typer
from rich.markup import escape

from libs.client import first
from reengage.attribution.v1 import erasure_pb2
from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
from services.cli import tables
from services.cli.connections import connected
from services.cli.console import print_json
from services.cli.progress import follow
from services.cli.tables import print_whole, table, time_text

_Erasure = erasure_pb2.Erasure


async def forget_device(app_id: str, device_id: str, target: str) -> _Erasure:
    """Starts an erasure and returns it once it is done. Shows progress on the error stream."""
    async with connected("attribution", target) as channel:
        stub = AttributionServiceStub(channel)
        request = erasure_pb2.ForgetDeviceRequest(app_id=app_id, device_id=device_id)
        begun: _Erasure = (await stub.ForgetDevice(request)).erasure
        if begun.state == _Erasure.STATE_DONE:  # asked for again
            return begun
        return await follow(
            "Erasing",
            lambda: read_erasure(stub, app_id, begun.erasure_id),
            has_ended=lambda erasure: erasure.state == _Erasure.STATE_DONE,
            progress=lambda erasure: f"Erasing: {sum(erasure.erased_counts.values()):,} rows so far",
            if_left=f"It goes on: reengage erasures get {app_id} {begun.erasure_id}",
        )


async def read_erasure(stub: Any, app_id: str, erasure_id: str) -> _Erasure:
    """Returns an erasure as it is. Raises ServiceError."""
    request = erasure_pb2.GetErasureRequest(app_id=app_id, erasure_id=erasure_id)
    erasure: _Erasure = (await stub.GetErasure(request)).erasure
    return erasure


async def read_erasures(stub: Any, app_id: str, limit: int) -> list[_Erasure]:
    """Returns at most so many erasures of an app, newest first. Raises ServiceError."""
    found, _ = await first(stub.ListErasures, erasure_pb2.ListErasuresRequest(app_id=app_id), limit)
    return found


def print_erasures(app_id: str, found: list[_Erasure], as_json: bool) -> None:
    """Prints a line each."""
    if as_json:
        print_json(erasure_pb2.ListErasuresResponse(erasures=found))
        return
    rows = table(
        f"Erasures of {escape(app_id)}",
        "erasure",
        "state",
        "asked for",
        "done",
        "rows",
        numbers=["rows"],
        whole=["erasure"],
    )
    for each in found:
        is_done = each.state == _Erasure.STATE_DONE
        rows.add_row(
            each.erasure_id,
            "done" if is_done else "under way",
            time_text(each.request_time),
            time_text(each.finish_time) if is_done else "",
            f"{sum(each.erased_counts.values()):,}",
        )
    if rows.row_count:
        print_whole(rows)
    else:
        tables.console.print(f"Erasures of {escape(app_id)}: none")


def print_erasure(erasure: _Erasure, as_json: bool) -> None:
    """Prints how far an erasure is, and what it erased."""
    if as_json:
        print_json(erasure)
        return
    is_done = erasure.state == _Erasure.STATE_DONE
    end = f"done {time_text(erasure.finish_time)} UTC" if is_done else "under way"
    typer.echo(f"Erasure {erasure.erasure_id} of a device of {erasure.app_id}")
    typer.echo(f"asked for {time_text(erasure.request_time)} UTC, {end}")
    rows = table("", "erased from", "rows", numbers=["rows"], whole=["erased from"])
    for name, count in sorted(erasure.erased_counts.items()):
        rows.add_row(name, f"{count:,}")
    if erasure.erased_counts:
        print_whole(rows)
    elif is_done:
        typer.echo(f"Nothing was there under this id of app {erasure.app_id}.")
