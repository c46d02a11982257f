"""Turns an event log into a data set: python jobs/prepare.py source=… dataset=URI columns.user=…"""

from __future__ import annotations

import sys

from retilt.command_line import job
from retilt.config import PrepareConfig


def run(config: PrepareConfig, dry_run: bool) -> object:
    from retilt.cluster import ingest

    return ingest.run(config, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(job(PrepareConfig, run, sys.argv[1:], prog="jobs/prepare.py", description="Event log → data set."))
