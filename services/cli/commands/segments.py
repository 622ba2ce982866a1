"""`reengage segments`."""

from services.cli.kinds import SEGMENT
from services.cli.resource_commands import resource_group

app = resource_group(
    SEGMENT,
    by_app=True,
    create_help="Creates a segment: at least campaign_id=CAMPAIGN and name=NAME.",
    edit_help="Changes fields of a segment, as name=Everybody.",
)
