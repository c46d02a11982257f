"""Trains a policy by imitation of the log: python jobs/pretrain.py dataset=URI output=URI workers=2"""

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
            prog="jobs/pretrain.py",
            description="Data set → policy.",
            refused={"initial": "pretraining starts from nothing; jobs/posttrain.py starts from a policy"},
        )
    )
