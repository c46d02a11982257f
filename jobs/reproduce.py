"""Every method, tuned and repeated, and one report: python jobs/reproduce.py preset=ml-100k output=URI seeds=3"""

from __future__ import annotations

import sys

from retilt.command_line import job
from retilt.config.reproduce import ReproduceConfig


def run(config: ReproduceConfig, dry_run: bool) -> object:
    from retilt.workflows import reproduce

    return reproduce.run(config, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(
        job(
            ReproduceConfig,
            run,
            sys.argv[1:],
            prog="jobs/reproduce.py",
            description="Preset → BC, every method tuned, controls, and one report.",
        )
    )
