"""`reengage postbacks`: what is sent to whom, when."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.console import WRONG, fail, print_json
from services.cli.groups import new_group
from services.cli.kinds import CONFIGURATION
from services.cli.options import Fields, Json, Target
from services.cli.resource_commands import (
    add_archive,
    add_get,
    add_list,
    edit_resource,
    existing,
    print_result,
    with_resources,
)

if TYPE_CHECKING:
    from reengage.postback.v1 import adapter_pb2
    from services.cli.resources import Resources

app = new_group("Lists, shows, creates, edits, previews, pauses and archives postback configurations.")
add_list(app, CONFIGURATION, by_app=True)
add_get(app, CONFIGURATION)
add_archive(app, CONFIGURATION)


@app.command("adapters")
def list_adapters(
    adapter: Annotated[str, typer.Argument(help="Only this one, with every field.")] = "",
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Lists the kinds of networks that configurations can be for, or the fields of one."""
    from reengage.postback.v1 import adapter_pb2
    from services.cli.delivery_tables import print_adapter, print_adapters

    async def describe(resources: "Resources") -> Any:
        return await resources.stub.DescribeAdapters(adapter_pb2.DescribeAdaptersRequest(adapter=adapter))

    response = with_resources(CONFIGURATION, target, describe)
    if as_json:
        print_json(response)
    elif adapter:
        print_adapter(response.adapters[0])
    else:
        print_adapters(response.adapters)


@app.command("create")
def create_configuration(fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Creates a postback configuration: app_id, network_id, trigger (an event, or _install), adapter and its fields.

    `reengage postbacks adapters ADAPTER` tells these, as url=https://.. of adapter=template. A secret is token=@FILE,
    which no history keeps, or token=VALUE.
    """
    from services.cli.adapter_fields import adapter_named, fill_configuration

    name = adapter_named(fields)
    if not name:
        fail("adapter is missing; `reengage postbacks adapters` lists them.", code=WRONG)
    configuration, _ = fill_configuration(fields, _adapter(name, target))

    async def create_it(resources: "Resources") -> Any:
        return await resources.create(CONFIGURATION, configuration)

    print_result("Created", CONFIGURATION, with_resources(CONFIGURATION, target, create_it), as_json)


@app.command("edit")
def edit_configuration(configuration_id: str, fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Changes fields of a postback configuration, as delivery_delay=30s, url=https://.. or token=@FILE."""
    from services.cli.adapter_fields import adapter_named, fill_configuration

    name = adapter_named(fields) or existing(CONFIGURATION, target, configuration_id).adapter
    configuration, paths = fill_configuration(fields, _adapter(name, target), configuration_id)

    async def update_it(resources: "Resources") -> Any:
        return await resources.update(CONFIGURATION, configuration, paths)

    print_result("Changed", CONFIGURATION, with_resources(CONFIGURATION, target, update_it), as_json)


@app.command("preview")
def preview(configuration_id: str, as_json: Json = False, target: Target = "") -> None:
    """Shows the request that a sample conversion would make, and sends nothing. Secrets are masked."""
    from reengage.postback.v1 import configuration_pb2
    from services.cli.delivery_tables import print_preview

    async def preview_it(resources: "Resources") -> Any:
        return await resources.stub.Preview(configuration_pb2.PreviewRequest(configuration_id=configuration_id))

    response = with_resources(CONFIGURATION, target, preview_it)
    print_json(response) if as_json else print_preview(response)


@app.command("pause")
def pause(configuration_id: str, as_json: Json = False, target: Target = "") -> None:
    """Pauses a configuration: it makes no new deliveries, and those under way wait."""
    edit_resource(CONFIGURATION, ["status=PAUSED"], as_json, target, configuration_id)


@app.command("resume")
def resume(configuration_id: str, as_json: Json = False, target: Target = "") -> None:
    """Lets a paused configuration go on."""
    edit_resource(CONFIGURATION, ["status=LIVE"], as_json, target, configuration_id)


def _adapter(name: str, target: str) -> "adapter_pb2.Adapter":
    """Returns the description of an adapter. Ends the command, naming those there are, when there is none."""
    from reengage.postback.v1 import adapter_pb2
    from services.cli.fields import nearest

    async def describe(resources: "Resources") -> Any:
        return await resources.stub.DescribeAdapters(adapter_pb2.DescribeAdaptersRequest())

    described: list[adapter_pb2.Adapter] = list(with_resources(CONFIGURATION, target, describe).adapters)
    adapters = {each.name: each for each in described}
    if name not in adapters:
        fail(f"there is no adapter {name!r}; there are {', '.join(adapters)}{nearest(name, adapters)}", code=WRONG)
    return adapters[name]
