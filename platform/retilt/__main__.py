"""python -m retilt doctor [URI]: checks this environment and says how to mend what is wrong."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code: 0, or 2 where something must be mended."""
    parser = argparse.ArgumentParser(prog="python -m retilt")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("doctor", help="check Python, torch, FBGEMM, TorchRec, Ray, memory and a store")
    check.add_argument("uri", nargs="?", help="folder of a store to write to, read from and delete in")
    flags = parser.parse_args(argv)
    try:
        from retilt.cluster import doctor
        from retilt.command_line import guarded
    except ImportError as problem:  # a half-installed environment is what this command is for
        print(f"error: {problem}; run `make setup`", file=sys.stderr)
        return 2
    return guarded(lambda: doctor.run(flags.uri))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
