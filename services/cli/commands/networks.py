"""`reengage networks`."""

from services.cli.kinds import NETWORK
from services.cli.resource_commands import resource_group

app = resource_group(
    NETWORK,
    by_app=False,
    create_help="Creates a network: at least name=NAME and platform=IOS or ANDROID; of one of the catalogue its"
    " network_id is enough.",
    edit_help="Changes fields of a network, as supports_impressions=false.",
)
