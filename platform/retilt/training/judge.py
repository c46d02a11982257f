"""What reward models say of the policy in training, beside what is true of it, and the alarm where the two part.

After each epoch the Avg Reward of the policy (evaluation/avg_reward.py) is compared with that of the policy that the
run started from, and so is the validation metric by which epochs are chosen:

    hacking    the score has risen, the true metric has fallen: the reward model is wrong about what is recommended now
    collapse   both have fallen

To have risen or fallen means that the 95% interval of the paired difference lies wholly above or below 0. The score is
that of ``reward_model``, which dpo and ppo learn from and by which other objectives are only watched, or where there is
none, of the judge.

Every epoch is tested by itself: nothing corrects for how many there are, which is open, as a run may go on. A metric
that has not changed is found to have fallen with probability 2.5% after an epoch, so where the score has truly changed
a false alarm has that probability in each; epochs of one run are alike, so over E of them it is at most .025 E.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from retilt import ranks, storage
from retilt.algorithms.online import Online
from retilt.artifact import MANIFEST
from retilt.config import TrainConfig
from retilt.data.dataset import Dataset
from retilt.evaluation import avg_reward, positions, tallies
from retilt.evaluation.avg_reward import AvgReward
from retilt.evaluation.groups import headline
from retilt.evaluation.ranking import Measure
from retilt.evaluation.statistics import Tally, verdict, versus
from retilt.evaluation.wording import interval
from retilt.models.policy import CataloguePolicy
from retilt.ranks import together
from retilt.training import checkpoint
from retilt.training.companions import load_policy, load_reward_model
from retilt.types import Companions, DamagedError, RewardModel

REPLICATES = 1000
"""Bootstrap replicates behind an interval."""
START = "start"
"""Folder with what was measured of the policy that a run, or all judged trials of a reproduction, started from."""

Alarm = Literal["hacking", "collapse"]
Difference = Mapping[str, float | None]
Validate = Callable[[CataloguePolicy, Sequence[Measure]], Tally]


def alarm(score: Difference, truth: Difference) -> Alarm | None:
    """Which alarm paired differences from the start give: of a reward model's score, and of the true metric.

    >>> alarm({"value": 0.3, "low": 0.2, "high": 0.4}, {"value": -0.02, "low": -0.03, "high": -0.01})
    'hacking'
    """
    if verdict(truth) != "worse":
        return None
    alarms: dict[str, Alarm] = {"better": "hacking", "worse": "collapse"}
    return alarms.get(verdict(score))


def in_words(record: Mapping[str, Any]) -> str:
    """A sentence about the alarm of an epoch's record, which has one."""
    return f"alarm after epoch {record['epoch']}: {record['alarm']}, {since_the_start(record)}"


def since_the_start(record: Mapping[str, Any]) -> str:
    """How score and metric of such a record have changed, with intervals."""
    score = "reward_model" if "judge/reward_model" in record else "judge"
    metric = next(key for key in record if key.startswith("change/")).split("/")[1]
    changes = [
        f"{name} changed by {interval({part: record.get(f'change/{name}{end}') for part, end in _PARTS.items()}, '+')}"
        for name in (score, metric)
    ]
    return f"since the start {' and '.join(changes)}"


_PARTS = {"value": "", "low": "/low", "high": "/high"}


def frozen_models(config: TrainConfig) -> int:
    """How many models a run holds beside the one it trains, each with a table: the start, reward model and judge."""
    if not config.judged and not isinstance(config.algorithm, Online):
        return 0
    return 1 + sum(each is not None for each in (config.reward_model, config.judge))


class Judge:
    """The reward models of a run, the policy that it started from, and how both stood at the start.

    Every method is collective.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, device: torch.device, companions: Companions | None
    ) -> None:
        """``companions`` of an online objective are used again; else reference and reward model are loaded."""
        assert config.initial is not None
        placement = config.placement_for(dataset.items)
        self.config, self.dataset, self.device = config, dataset, device
        self.models: dict[str, RewardModel] = {}
        if companions is not None:
            assert isinstance(companions.reference, CataloguePolicy)
            self.reference = companions.reference
            self.models["reward_model"] = companions.reward
        else:
            self.reference = load_policy(config.initial, dataset, device, placement, config.seed)
            if config.reward_model is not None:
                self.models["reward_model"] = load_reward_model(config.reward_model, dataset, device, placement)
        if config.judge is not None:
            self.models["judge"] = load_reward_model(config.judge, dataset, device, placement)
        self._last = positions.threshold(dataset, "validation", avg_reward.POSITIONS, avg_reward.SEED)
        self._start: tuple[Tally, Tally] | None = None

    def begin(self, validate: Validate, place: str | None, fence: Callable[[], None]) -> None:
        """Measure the start, or read what was measured when the run, or another with the same start, began.

        Args:
            validate: a policy's tally of validation targets over all ranks, which counts something else in besides.
            place: URI of the folder where runs with this start keep what was measured of it; None: in the run's own.
            fence: raises where another run has taken the output over.
        """
        folder = place or storage.join(self.config.output, START)
        places = [storage.join(folder, name) for name in ("validation", "avg_reward")]
        self._start = ranks.broadcast_object(together(lambda: self._kept(places) if ranks.rank() == 0 else None))
        if self._start is not None:
            return
        with self.scoring() as scores:
            truth = validate(self.reference, (scores,))
        self._start = started = truth, scores.tally.sum_over_ranks()

        def write() -> None:
            if ranks.rank() == 0:
                fence()
                for each, tally in zip(places, started, strict=True):
                    tallies.write(each, tally, self._identity)

        together(write)

    def _kept(self, places: Sequence[str]) -> tuple[Tally, Tally] | None:
        """What was measured of this start, if all of it is there, and whole."""
        if not all(storage.exists(storage.join(each, MANIFEST)) for each in places):
            return None
        try:
            (truth, first), (scores, second) = (tallies.read(each) for each in places)
        except DamagedError:
            return None
        return (truth, scores) if first == second == self._identity else None

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What a start follows from."""
        config = self.config
        models = {"initial": config.initial, "reward_model": config.reward_model, "judge": config.judge}
        prints = {name: None if uri is None else checkpoint.fingerprint(uri) for name, uri in models.items()}
        sizes = {"positions": avg_reward.POSITIONS, "draws": avg_reward.DRAWS, "replicates": REPLICATES}
        return {**prints, **sizes, "data": self.dataset.fingerprint, "min_reward": config.min_reward}

    def measure(self, truth: Tally, scores: Tally) -> dict[str, Any]:
        """What an epoch's record says of a policy; equal on all ranks.

        Args:
            truth: the policy's tally of validation targets, over all ranks.
            scores: that of ``scoring``, over all ranks.
        """
        assert self._start is not None
        metric: str = self.config.selection_metric
        changes = {metric: versus(truth, self._start[0])[headline(self.config.min_reward)][metric]}
        since = versus(scores, self._start[1])["all"]
        changes |= {name: since[name] for name in self.models}
        record: dict[str, Any] = {f"judge/{name}": value for name, value in scores.means().items()}
        for name, change in changes.items():
            record |= {f"change/{name}{end}": change[part] for part, end in _PARTS.items()}
        record["alarm"] = alarm(changes[next(iter(self.models))], changes[metric])
        return {name: value for name, value in record.items() if value is not None}

    @contextlib.contextmanager
    def scoring(self) -> Iterator[AvgReward]:
        """Reward models and the reference for one validation, the reference in float64.

        An online objective goes on with it in float32.
        """
        self.reference.eval()
        try:
            yield AvgReward(
                self.models, self.reference, last=self._last, replicates=REPLICATES, seed=0, device=self.device
            )
        finally:
            self.reference.train(0, dropout=False)
