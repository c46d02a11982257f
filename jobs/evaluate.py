"""Compares policies on held-out events: python jobs/evaluate.py dataset=URI policies='[URI,URI]' output=URI"""

from __future__ import annotations

import sys

from retilt.command_line import job
from retilt.config import EvaluateConfig


def run(config: EvaluateConfig, dry_run: bool) -> object:
    from retilt.cluster import evaluate

    return evaluate.run(config, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(
        job(
            EvaluateConfig,
            run,
            sys.argv[1:],
            prog="jobs/evaluate.py",
            description="Policies + held-out events → metrics with intervals.",
        )
    )
