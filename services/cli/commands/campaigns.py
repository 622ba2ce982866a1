"""`reengage campaigns`."""

from services.cli.kinds import CAMPAIGN
from services.cli.resource_commands import resource_group

app = resource_group(
    CAMPAIGN,
    by_app=True,
    create_help="Creates a campaign: at least app_id=APP and name=NAME.",
    edit_help="Changes fields of a campaign, as name=Spring.",
)
