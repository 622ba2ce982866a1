"""`reengage network-settings`: what holds for one network in one app."""

from services.cli.groups import new_group
from services.cli.kinds import NETWORK_SETTINGS
from services.cli.options import Fields, Json, Target
from services.cli.resource_commands import edit_resource, show_resource

app = new_group("Shows and edits what holds for one network in one app.")


@app.command("get")
def get_network_settings(app_id: str, network_id: str, as_json: Json = False, target: Target = "") -> None:
    """Shows what was set for a network in an app; nothing, where nothing was."""
    show_resource(NETWORK_SETTINGS, as_json, target, app_id, network_id)


@app.command("edit")
def edit_network_settings(
    app_id: str, network_id: str, fields: Fields, as_json: Json = False, target: Target = ""
) -> None:
    """Changes them, as windows.click_device=7d, granular_data_policy=REDACT or late_pings=1h."""
    edit_resource(NETWORK_SETTINGS, fields, as_json, target, app_id, network_id)
