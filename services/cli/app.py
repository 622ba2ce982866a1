"""The command `reengage`.

Exit codes: 0 done; 1 it failed, or a check did not hold; 2 the command line or a file does not fit; 130 interrupted.
Modules are imported by the command that needs them, so that `reengage --help` is quick.
"""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from services.cli.commands import decisions, erasures, reattributions, trackers

if TYPE_CHECKING:
    from google.protobuf.message import Message

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Configures Reengage, asks it and runs its services. "
    "[dim]Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.[/]",
)

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Target = Annotated[str, typer.Option(help="host:port of the service. Default: the suite that runs here.")]
SERVICES = ("tracker", "ingest", "attribution", "postback", "gateway")
INTERRUPTED = 130


@app.command()
def serve(service: Annotated[str, typer.Argument(help="tracker, ingest, attribution, postback or gateway.")]) -> None:
    """Runs one service in this process, configured by its REENGAGE_* variables."""
    import runpy

    _check_service(service)
    sys.argv = [f"services.{service}"]
    runpy.run_module(f"services.{service}", run_name="__main__", alter_sys=True)


@app.command()
def migrate(
    service: Annotated[str, typer.Argument(help="The service whose schema is to be made or brought up to date.")],
    admin_dsn: Annotated[
        str, typer.Option(envvar="REENGAGE_ADMIN_DSN", help="A role that owns the database and may create roles.")
    ],
    app_password: Annotated[
        str, typer.Option(envvar="REENGAGE_APP_PASSWORD", help="Password of <service>_app, where one is needed.")
    ] = "",
) -> None:
    """Makes a service's schema and roles, and applies the migrations that are missing."""
    from asyncpg import PostgresError

    from libs.migrations import MigrationError, prepare
    from services.cli.places import ROOT

    _check_service(service)
    directory = ROOT / "services" / service / "migrations"
    if not directory.is_dir():
        _fail(f"{service} owns no schema", code=2)
    try:
        applied = asyncio.run(
            prepare(admin_dsn, schema=service, directory=directory, app_password=app_password or None)
        )
    except (MigrationError, PostgresError, OSError, TimeoutError) as error:
        _fail(str(error))
    for migration in applied:
        typer.echo(f"applied {migration.name}")
    typer.echo(f"{service} is up to date")


@app.command()
def simulate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A scenario, YAML or JSON, or a directory of them.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare with each file's `expect`; exit 1 if one differs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Runs scenarios through the real decision code, without a server. Exit code 2: a file does not fit."""
    from services.attribution.simulator.command import run

    raise typer.Exit(run(path, check_expect=check, as_json=as_json))


@app.command()
def deliveries(
    app_id: str,
    delivery_id: Annotated[str, typer.Argument(help="Show this one, with every attempt.")] = "",
    conversion: Annotated[str, typer.Option(help="Only those of this conversion.")] = "",
    configuration: Annotated[str, typer.Option(help="Only those of this postback configuration.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 50,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Lists an app's postbacks, newest first, or shows one with every attempt."""
    from reengage.postback.v1 import delivery_pb2
    from services.cli.calls import to_json
    from services.cli.tables import print_deliveries, print_delivery

    if delivery_id:
        answer = _ask("PostbackService/GetDelivery", delivery_pb2.GetDeliveryRequest(delivery_id=delivery_id), target)
        assert isinstance(answer, delivery_pb2.GetDeliveryResponse)
        if answer.delivery.app_id != app_id:
            _fail(f"delivery {delivery_id} belongs to app {answer.delivery.app_id}")
        typer.echo(to_json(answer, indent=2)) if as_json else print_delivery(answer.delivery)
        return
    listed = _ask(
        "PostbackService/ListDeliveries",
        delivery_pb2.ListDeliveriesRequest(
            app_id=app_id, conversion_id=conversion, configuration_id=configuration, page_size=limit
        ),
        target,
    )
    assert isinstance(listed, delivery_pb2.ListDeliveriesResponse)
    typer.echo(to_json(listed, indent=2)) if as_json else print_deliveries(app_id, listed.deliveries)


@app.command()
def call(
    method: Annotated[str, typer.Argument(metavar="SERVICE/METHOD", help="As `tracker/ListApps`.")],
    request: Annotated[str, typer.Argument(metavar="JSON", help="The request; - reads it from standard input.")] = "{}",
    target: Target = "",
) -> None:
    """Calls a gRPC method: JSON in, JSON out, one object per response of a stream."""
    from services.cli import calls

    async def main() -> int:
        service, descriptor = calls.find_method(method)
        message = calls.parse_request(descriptor, sys.stdin.read() if request == "-" else request)
        async for response in calls.call(service, descriptor, message, target=target):
            typer.echo(calls.to_json(response, indent=None if descriptor.server_streaming else 2))
        return 0

    try:
        raise typer.Exit(_run(main()))
    except calls.CallError as error:
        _fail(str(error))


def _ask(name: str, request: "Message", target: str) -> "Message":
    from services.cli import calls

    try:
        return asyncio.run(calls.ask(name, request, target=target))
    except calls.CallError as error:
        _fail(str(error))


def _run(main: Coroutine[None, None, int]) -> int:
    """Returns the exit code of `main`, or the one that says a signal ended it."""
    try:
        return asyncio.run(main)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return INTERRUPTED


def _check_service(service: str) -> None:
    if service not in SERVICES:
        _fail(f"there is no service {service!r}; there are {', '.join(SERVICES)}", code=2)


def _fail(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


app.command()(decisions.explain)
app.command()(decisions.watch)
app.command()(erasures.forget)
app.command("what-if")(reattributions.what_if)
app.command()(reattributions.reattribute)
app.command()(trackers.apply)
app.add_typer(trackers.trackers, name="trackers")
app.add_typer(trackers.apps, name="apps")
app.add_typer(trackers.events, name="events")

if __name__ == "__main__":
    app()
