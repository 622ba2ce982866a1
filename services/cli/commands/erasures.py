"""`reengage forget`: erasing a device everywhere, and the proof of it."""

import asyncio
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from google.protobuf import timestamp_pb2

    from reengage.attribution.v1 import erasure_pb2

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Target = Annotated[str, typer.Option(help="host:port of the service. Default: the suite that runs here.")]
INTERRUPTED = 130
_LOOK_S = 0.3


def forget(
    app_id: str,
    device_id: Annotated[
        str, typer.Argument(help="Any id of the device, of whatever kind: raw, or hashed if it never came raw.")
    ] = "",
    proof: Annotated[str, typer.Option(metavar="ERASURE_ID", help="Instead: show an earlier erasure.")] = "",
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Erases a device from the log, attribution and postbacks, for good, and shows the proof; it names no device.

    The work is done by the services: Ctrl-C leaves it going, and --proof shows it later.
    """
    from services.cli import calls

    if bool(device_id) == bool(proof):
        _fail("Give the id of a device, or --proof.", code=2)
    try:
        erasure = asyncio.run(_show(app_id, proof, target) if proof else _forget(app_id, device_id, target))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except calls.CallError as error:
        _fail(str(error))
    typer.echo(calls.to_json(erasure, indent=2)) if as_json else _print(erasure)


async def _forget(app_id: str, device_id: str, target: str) -> "erasure_pb2.Erasure":
    """Start an erasure and follow it to its end."""
    from rich.console import Console

    from reengage.attribution.v1 import erasure_pb2
    from services.cli import calls

    request = erasure_pb2.ForgetDeviceRequest(app_id=app_id, device_id=device_id)
    answer = await calls.ask("attribution/ForgetDevice", request, target=target)
    assert isinstance(answer, erasure_pb2.ForgetDeviceResponse)
    erasure = answer.erasure
    console = Console(stderr=True)
    with console.status("Erasing") as status:
        try:
            while erasure.state != erasure_pb2.Erasure.STATE_DONE:
                status.update(f"Erasing: {sum(erasure.erased_counts.values()):,} rows so far")
                await asyncio.sleep(_LOOK_S)
                try:
                    erasure = await _show(app_id, erasure.erasure_id, target)
                except calls.CallError as error:
                    if not calls.is_away(error):
                        raise
                    status.update("The service is away; what it has begun goes on when it is back")
        except asyncio.CancelledError:
            console.print(f"It goes on: reengage forget {app_id} --proof {erasure.erasure_id}")
            raise
    return erasure


async def _show(app_id: str, erasure_id: str, target: str) -> "erasure_pb2.Erasure":
    from reengage.attribution.v1 import erasure_pb2
    from services.cli import calls

    request = erasure_pb2.GetErasureRequest(app_id=app_id, erasure_id=erasure_id)
    answer = await calls.ask("attribution/GetErasure", request, target=target)
    assert isinstance(answer, erasure_pb2.GetErasureResponse)
    return answer.erasure


def _print(erasure: "erasure_pb2.Erasure") -> None:
    from reengage.attribution.v1 import erasure_pb2
    from services.cli.tables import print_whole, table

    def at(time: "timestamp_pb2.Timestamp") -> str:
        return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"

    is_done = erasure.state == erasure_pb2.Erasure.STATE_DONE
    typer.echo(f"Erasure {erasure.erasure_id} of a device of {erasure.app_id}")
    typer.echo(f"asked for {at(erasure.request_time)}, {f'done {at(erasure.finish_time)}' if is_done else 'under way'}")
    rows = table("", "erased from", "rows", numbers=["rows"], whole=["erased from"])
    for name, count in sorted(erasure.erased_counts.items()):
        rows.add_row(name, f"{count:,}")
    if erasure.erased_counts:
        print_whole(rows)
    elif is_done:
        typer.echo(f"Nothing was there under this id of app {erasure.app_id}.")


def _fail(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
