"""`reengage agencies`."""

from services.cli.kinds import AGENCY
from services.cli.resource_commands import resource_group

app = resource_group(
    AGENCY,
    by_app=False,
    create_help="Creates an agency: at least name=NAME.",
    edit_help="Changes fields of an agency, as name=Blue.",
)
