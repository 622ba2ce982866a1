"""Starts the simulator: `python -m services.attribution.simulator PATH [--check] [--json]`."""

import argparse
import sys
from pathlib import Path

from services.attribution.simulator.command import run


def main() -> int:
    """Returns the exit code of the run that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="simulate", description="Decides a scenario with the code that decides live, without server or database."
    )
    parser.add_argument("path", type=Path, help="a scenario file, or a directory of them")
    parser.add_argument("--check", action="store_true", help="compare with what the file expects; exit 1 if it differs")
    parser.add_argument("--json", action="store_true", help="print JSON lines, not a table")
    arguments = parser.parse_args()
    return run(arguments.path, check_expect=arguments.check, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
