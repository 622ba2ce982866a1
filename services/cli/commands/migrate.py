"""`reengage migrate`: making a schema, or bringing it up to date."""

from typing import Annotated

import typer

from services.cli.console import WRONG, fail
from services.cli.groups import single
from services.cli.places import ROOT
from services.cli.service_names import ServiceName, check_service

app = single()


@app.command()
def migrate(
    service: ServiceName,
    admin_dsn: Annotated[
        str, typer.Option(envvar="REENGAGE_ADMIN_DSN", help="A role that owns the database and may create roles.")
    ],
    app_password: Annotated[
        str, typer.Option(envvar="REENGAGE_APP_PASSWORD", help="Password of <service>_app, where one is needed.")
    ] = "",
) -> None:
    """Makes a service's schema and roles, and applies the migrations that are missing."""
    import asyncio

    from asyncpg import PostgresError

    from libs.migrations import MigrationError, prepare

    check_service(service)
    directory = ROOT / "services" / service / "migrations"
    if not directory.is_dir():
        fail(f"{service} owns no schema", code=WRONG)
    try:
        applied = asyncio.run(
            prepare(admin_dsn, schema=service, directory=directory, app_password=app_password or None)
        )
    except (MigrationError, PostgresError, OSError, TimeoutError) as error:
        fail(str(error))
    for migration in applied:
        typer.echo(f"applied {migration.name}")
    typer.echo(f"{service} is up to date")
