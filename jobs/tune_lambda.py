"""Finds the λ of Exp-RSFT: python jobs/tune_lambda.py dataset=URI initial=URI output=URI temperatures='[.1,.5,1]'"""

from __future__ import annotations

import sys

from retilt.command_line import job
from retilt.config.tune import TuneConfig


def run(config: TuneConfig, dry_run: bool) -> object:
    from retilt.workflows import search

    return search.run(config, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(
        job(
            TuneConfig,
            run,
            sys.argv[1:],
            prog="jobs/tune_lambda.py",
            description="Data set + BC policy → λ, chosen on validation data, and the policy trained with it.",
            required=("initial",),
        )
    )
