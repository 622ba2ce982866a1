"""An app and all that belongs to it, as a settings file."""

from services.cli.kinds import (
    APP,
    CAMPAIGN,
    CONFIGURATION,
    EVENT_DEFINITION,
    NETWORK,
    NETWORK_SETTINGS,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
)
from services.cli.resources import resources_of
from services.cli.settings_file import write_settings_file

_OF_APP = (CAMPAIGN, SEGMENT, TRACKER, EVENT_DEFINITION, SAN_ACCOUNT)


async def export(app_id: str, target: str = "", postback_target: str = "") -> str | None:
    """Returns the file that applying would change nothing by; None when there is no such app. Raises CallError."""
    async with resources_of("tracker", target) as tracker:
        app = await tracker.get(APP, app_id)
        if app is None:
            return None
        held = {kind.name: await tracker.all(kind, app_id=app_id) for kind in _OF_APP}
        # There are settings for every network that the app can have; those that say nothing are left out later.
        held[NETWORK_SETTINGS.name] = [
            await tracker.existing(NETWORK_SETTINGS, app_id, network.network_id)
            for network in await tracker.all(NETWORK, show_archived=True)
            if network.platform == app.platform
        ]
    async with resources_of("postback", postback_target) as postback:
        held[CONFIGURATION.name] = await postback.all(CONFIGURATION, app_id=app_id)
    return write_settings_file(app, held)
