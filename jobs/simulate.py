"""Writes the event log of a simulated world: python jobs/simulate.py output=URI preset=ratings users=140000 seed=0"""

from __future__ import annotations

import sys

from retilt.command_line import job
from retilt.config import SimulateConfig


def run(config: SimulateConfig, dry_run: bool) -> object:
    from retilt.cluster import simulate

    return simulate.run(config, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(
        job(SimulateConfig, run, sys.argv[1:], prog="jobs/simulate.py", description="Simulated world → event log.")
    )
