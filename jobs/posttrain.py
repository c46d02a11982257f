"""Aligns a policy with logged rewards: python jobs/posttrain.py dataset=URI initial=URI output=URI algorithm=x"""

from __future__ import annotations

import sys

from retilt.command_line import job
from retilt.config import TrainConfig


def run(config: TrainConfig, dry_run: bool) -> object:
    from retilt.cluster import train

    return train.run(config, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(
        job(
            TrainConfig,
            run,
            sys.argv[1:],
            prog="jobs/posttrain.py",
            description="Data set + initial policy → better policy.",
            required=("initial", "algorithm"),
        )
    )
