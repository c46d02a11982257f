"""What is measured after an epoch, on events that training has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from retilt import ranks, storage
from retilt.algorithms.reward_model import RewardModel
from retilt.config import TrainConfig
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.evaluation import audit, tallies
from retilt.evaluation.groups import headline
from retilt.evaluation.ranking import Measure, tally
from retilt.evaluation.statistics import Tally
from retilt.models.policy import CataloguePolicy
from retilt.models.reward import FrozenRewardModel
from retilt.ranks import together
from retilt.training.judge import REPLICATES, Judge
from retilt.types import Batch, Companions

KEPT = "validation"
"""Folder of a run with the tally of each epoch's validation, where they are kept."""


def kept(output: str, epoch: int) -> str:
    """Where the run in ``output`` keeps the tally of an epoch (from 1)."""
    return storage.join(output, KEPT, f"epoch-{epoch}")


class Validation:
    """One rank's part of the measurements of a run; there are none under ``protocol=refit``, where nothing is held out.

    Every method is collective.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        policy: CataloguePolicy,
        device: torch.device,
        companions: Companions | None = None,
        replicates: int = 0,
        start: str | None = None,
    ) -> None:
        """``companions`` are those of an online objective.

        ``replicates``: bootstrap replicates of the tallies that are kept, with which runs can be compared user by user
        and nothing ranked again; 0 keeps none. ``start``: as ``Judge.begin`` takes it.
        """
        self.start = start
        self.config, self.dataset, self.policy, self.device = config, dataset, policy, device
        self.judge = Judge(config, dataset, device, companions) if config.judged else None
        self.keep = replicates > 0
        self.replicates = replicates or (REPLICATES if self.judge else 0)

    def begin(self, fence: Callable[[], None]) -> None:
        """Before the first step, and again where a run is continued; ``fence`` is asked before anything is written."""
        if self.judge is not None:
            self.judge.begin(self._validate, self.start, fence)

    def measure(self, epoch: int, fence: Callable[[], None]) -> dict[str, Any]:
        """Of the policy after an epoch (from 1): metrics under ``validation/``, and what reward models say (judge.py).

        ``fence`` is asked before the tally is written, where it is kept.
        """
        if self.config.protocol != "select":
            return {}
        if isinstance(self.config.algorithm, RewardModel):
            errors = audit.errors(FrozenRewardModel(self.policy), self._batches(), 0, 0, self.device).sum_over_ranks()
            return {f"validation/{name}": value for name, value in errors.means().items() if value is not None}
        policy, scores = self.policy.eval(), None
        if self.judge is None:
            found = self._validate(policy)
        else:
            with self.judge.scoring() as scores:
                found = self._validate(policy, (scores,))
        if self.keep:
            self._write(found, epoch, fence)
        means = found.means(headline(self.config.min_reward))
        record: dict[str, Any] = {f"validation/{name}": value for name, value in means.items() if value is not None}
        if self.judge is None or scores is None:
            return record
        return record | self.judge.measure(found, scores.tally.sum_over_ranks())

    def _write(self, found: Tally, epoch: int, fence: Callable[[], None]) -> None:
        def write() -> None:
            if ranks.rank() == 0:
                fence()
                tallies.write(kept(self.config.output, epoch), found, {"epoch": epoch})

        together(write)

    def _validate(self, policy: CataloguePolicy, also: Sequence[Measure] = ()) -> Tally:
        return tally(
            policy, self._batches(), train_counts=self.dataset.train_counts("select"), also=also,
            min_reward=self.config.min_reward, replicates=self.replicates, seed=0, device=self.device,
        ).sum_over_ranks()  # fmt: skip

    def _batches(self) -> Iterator[Batch]:
        return evaluation_batches(
            self.dataset, "validation", self.policy.settings.max_length, "all", self.config.batch_users,
            ranks.rank(), ranks.world(),
        )  # fmt: skip

    def score(self, record: Mapping[str, Any]) -> float | None:
        """By which the best epoch is chosen, the higher the better, from an epoch's record."""
        if isinstance(self.config.algorithm, RewardModel):
            return -record["validation/mse"] if "validation/mse" in record else None
        value = record.get(f"validation/{self.config.selection_metric}")
        return None if value is None else float(value)
