"""Learns what users reward items with: python jobs/train_reward.py dataset=URI initial=URI output=URI"""

from __future__ import annotations

import sys

from retilt.command_line import job
from retilt.config import TrainConfig


def run(config: TrainConfig, dry_run: bool) -> object:
    from retilt.cluster import reward

    return reward.run(config, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(
        job(
            TrainConfig,
            run,
            ["algorithm=reward_model", *sys.argv[1:]],
            prog="jobs/train_reward.py",
            description="Data set + initial policy → reward model, and an audit of it.",
            required=("initial",),
        )
    )
