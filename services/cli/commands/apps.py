"""`reengage apps`."""

from typing import Annotated

import typer

from services.cli.console import fail, write
from services.cli.kinds import APP
from services.cli.options import Output, Target
from services.cli.resource_commands import resource_group

app = resource_group(
    APP,
    by_app=False,
    create_help="Creates an app: at least name=NAME and platform=IOS or ANDROID.",
    edit_help="Changes fields of an app, as currency_code=EUR or settings.windows.click_ip=1d.",
)
app.info.help = "Lists, shows, creates, edits, archives and exports apps."


@app.command("export")
def export_app(
    app_id: str,
    output: Output = None,
    target: Target = "",
    postback_target: Annotated[str, typer.Option(help="host:port of postback.")] = "",
) -> None:
    """Writes an app and all that belongs to it to a file for `reengage apply`, without secrets."""
    from services.cli.connections import run
    from services.cli.settings_export import export

    text = run(export(app_id, target, postback_target))
    if text is None:
        fail(f"There is no app {app_id}.")
    write(output, text.encode())
