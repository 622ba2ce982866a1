"""Places of things on this machine."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout, or where the package is installed."""
DATA = Path(os.environ.get("REENGAGE_DATA") or ROOT / ".data").absolute()
"""The directory of all that the suite keeps: database, spool, logs, the key of stored secrets."""
ADDRESSES = DATA / "suite.json"
"""The addresses of the suite that runs on this data, for the commands that ask it."""
ADMIN_KEY = DATA / "admin.key"
"""The key that opens its tracker."""
