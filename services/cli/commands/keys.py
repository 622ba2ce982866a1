"""`reengage keys`: API keys, who calls and what he may do."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.console import WRONG, fail, print_json
from services.cli.groups import new_group
from services.cli.kinds import API_KEY
from services.cli.options import Fields, Json, Target
from services.cli.resource_commands import add_archive, add_edit, add_get, add_list, fill, with_resources

if TYPE_CHECKING:
    from reengage.tracker.v1 import api_key_pb2
    from services.cli.resources import Resources

app = new_group("Lists, shows, creates, edits, rotates and archives API keys.")
add_list(app, API_KEY, by_app=False)
add_get(app, API_KEY)
add_edit(app, API_KEY, "Changes fields of an API key, as name=Ann or expire_time=2027-01-01.")
add_archive(app, API_KEY)


@app.command("create")
def create_key(fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Creates an API key and shows it, this once: at least name=NAME and role=ADMIN, EDITOR, VIEWER or SERVICE.

    A scope is app_id=APP or account_id=ACCOUNT; role=NETWORK needs network_id, role=AGENCY agency_id, too.
    """
    from reengage.tracker.v1 import api_key_pb2

    key, _ = fill(API_KEY, fields)

    async def create_it(resources: "Resources") -> Any:
        return await resources.stub.CreateApiKey(api_key_pb2.CreateApiKeyRequest(api_key=key))

    _print_key("Created", with_resources(API_KEY, target, create_it), as_json)


@app.command("rotate")
def rotate_key(
    api_key_id: str,
    overlap: Annotated[str, typer.Option(help="How long the old key goes on, as 1h or 7d. Default: 24h.")] = "",
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Makes another key of the same role and scope, shows it, this once, and lets the old one end."""
    from libs.time import parse_duration, to_duration
    from reengage.tracker.v1 import api_key_pb2

    request = api_key_pb2.RotateApiKeyRequest(api_key_id=api_key_id)
    if overlap:
        try:
            request.overlap.CopyFrom(to_duration(parse_duration("0s" if overlap == "0" else overlap)))
        except ValueError as error:
            fail(f"--overlap {error}", code=WRONG)

    async def rotate_it(resources: "Resources") -> Any:
        return await resources.stub.RotateApiKey(request)

    _print_key("Rotated: the new one is", with_resources(API_KEY, target, rotate_it), as_json)


def _print_key(
    done: str, response: "api_key_pb2.CreateApiKeyResponse | api_key_pb2.RotateApiKeyResponse", as_json: bool
) -> None:
    from services.cli.resource_tables import print_resource

    if as_json:
        print_json(response)
        return
    print_resource(f"{done} API key {response.api_key.api_key_id}", response.api_key)
    if response.key:
        typer.echo(f"\nThe key, which is shown this once: {response.key}")
    else:
        typer.echo("\nThe key was shown when it was made; it cannot be had again.")
