"""One rank's share of an evaluation: its users, for one policy after the other; sums are then taken over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retilt import ranks
from retilt.config import EvaluateConfig, model_of, place_table
from retilt.config.evaluate import Tilt
from retilt.data.dataset import Dataset
from retilt.data.stream import evaluation_batches
from retilt.evaluation import avg_reward, positions, returns
from retilt.evaluation.avg_reward import AvgReward
from retilt.evaluation.gains import Further
from retilt.evaluation.groups import divide
from retilt.evaluation.lists import Lists
from retilt.evaluation.pairs import Pairs
from retilt.evaluation.ranking import Targets, tally
from retilt.evaluation.statistics import Tally
from retilt.evaluation.tilts import ItemTilt, item_means, reward_tilt_tallies
from retilt.models.policy import CataloguePolicy
from retilt.ranks import together
from retilt.training import checkpoint, parallel
from retilt.training.assemble import Blueprint, assemble
from retilt.training.companions import load_reward_model
from retilt.types import Batch, ExactPolicy, Reporter, RewardModel

TILT_USERS = 16
"""Users of a batch at whose every position a reward model scores a whole tile of items."""

Found = tuple[Tally, Further]


@dataclass(frozen=True)
class Loaded:
    """A policy, in evaluation mode, and what it knows of the catalogue."""

    policy: CataloguePolicy
    protocol: str
    recommended: Tensor
    """(V + 1,) bool, active items of its vocabulary. Items that came later it cannot recommend."""
    train_counts: Tensor
    """(V + 1,) training events at its cut; targets without one are misses."""


def work(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Found]:
    """What was measured of each policy by name, over all ranks. Collective.

    ``arguments``: the ``config``, absolute URIs of the ``dataset``, of checkpoints of ``policies`` and
    ``reward_models`` by name, of the ``reference`` or None, and of those that each tilt is made of (``tilted``: name →
    ``policy``, ``reward_model``). ``high_only``: only targets of at least ``min_reward`` are ranked (absent: all).
    """
    return Share(arguments).measure(reporter)


class Share:
    """One rank's part; every method is collective."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.config = EvaluateConfig.model_validate(arguments["config"])
        self.arguments, self.device = arguments, parallel.choose_device(self.config.device)
        self.dataset = Dataset.open(arguments["dataset"])
        together(lambda: self.dataset.verify_share(ranks.rank(), ranks.world()))
        first = checkpoint.read_state(next(iter(arguments["policies"].values())))
        self.train_counts = self.dataset.train_counts(first["lineage"][-1]["protocol"])
        part = self.config.part
        self.division = divide(self.dataset, part, self.train_counts) if self.config.groups else None
        quantile = self.config.return_quantile
        self.high_return = None if quantile is None else returns.bound(self.dataset, part, quantile)
        self.judges = {name: self._reward_model(place) for name, place in arguments["reward_models"].items()}
        self.reference = None if arguments["reference"] is None else self._load(arguments["reference"]).policy
        if self.judges or self.reference is not None:
            self.last = positions.threshold(self.dataset, part, avg_reward.POSITIONS, avg_reward.SEED)

    def measure(self, reporter: Reporter) -> dict[str, Found]:
        """See ``work``; in the order of the configuration, tilts last."""
        places = self.arguments["policies"]
        found: dict[str, Found] = {}
        tilted = self.arguments["tilted"]
        for place in dict.fromkeys([*places.values(), *(each["policy"] for each in tilted.values())]):
            loaded = self._load(place)
            results = {name: self._measured(loaded, loaded.policy) for name in places if places[name] == place}
            for name in tilted:
                if tilted[name]["policy"] == place:
                    results |= dict(self._tilted(loaded, name, tilted[name]["reward_model"]))
            for name, result in results.items():
                found[name] = result
                if ranks.rank() == 0:
                    reporter.progress({"policy": name, "targets": result[0].count("n")})
        return found

    def _load(self, place: str) -> Loaded:
        state = checkpoint.read_state(place)
        placement = place_table(self.config.table, self.dataset.items)
        blueprint = Blueprint(
            model_of(state, place), self.dataset.items, placement, "row_wise_adagrad", 1e-3, 1e-3, 0.0, 0
        )
        known = torch.arange(self.dataset.items + 1) <= int(state["items"])
        recommended, protocol = self.dataset.active() & known, state["lineage"][-1]["protocol"]
        policy, _ = assemble(blueprint, recommended, self.device)
        together(lambda: checkpoint.load(place, policy, None))
        counts = self.dataset.train_counts(protocol) * known
        return Loaded(policy.eval(), protocol, recommended, counts)

    def _reward_model(self, place: str) -> RewardModel:
        return load_reward_model(place, self.dataset, self.device, place_table(self.config.table, self.dataset.items))

    def _batches(self, loaded: Loaded, users: int | None = None) -> Iterator[Batch]:
        batches = evaluation_batches(
            self.dataset, self.config.part, loaded.policy.settings.max_length, self.config.exclude_history,
            users or self.config.batch_users, ranks.rank(), ranks.world(),
        )  # fmt: skip
        if self.arguments.get("high_only"):
            high = torch.tensor(self.config.min_reward)
            return (positions.chosen(each, each.target_reward_P >= high) for each in batches)
        return batches

    def _measured(self, loaded: Loaded, policy: ExactPolicy) -> Found:
        """Of a policy, or of what it is tilted to."""
        config = self.config
        lists, pairs = None, None
        judged = self._judged() if self.judges or self.reference is not None else None
        if config.groups:
            active = self.dataset.active()
            lists = Lists(self.train_counts, active, config.replicates, config.seed, self.device)
        if config.low_reward is not None and config.min_reward is not None:
            pairs = Pairs(
                config.low_reward, config.min_reward, self.dataset.k, config.replicates, config.seed, self.device
            )
        targets = tally(
            policy, self._batches(loaded), train_counts=loaded.train_counts, min_reward=config.min_reward,
            low_reward=config.low_reward, high_return=self.high_return, division=self.division,
            also=[each for each in (lists, pairs, judged) if each is not None],
            replicates=config.replicates, seed=config.seed, device=self.device,
        )  # fmt: skip
        further = Further(None if judged is None else judged.tally, lists, None if pairs is None else pairs.tally)
        return targets.sum_over_ranks(), further.sum_over_ranks()

    def _judged(self) -> AvgReward:
        """With nothing counted in."""
        return AvgReward(
            self.judges, self.reference, last=self.last, replicates=self.config.replicates, seed=self.config.seed,
            device=self.device,
        )  # fmt: skip

    def scores(self) -> Tally:
        """Only what reward models and the reference say of the configuration's one policy, and nothing of its ranks."""
        (place,) = self.arguments["policies"].values()
        loaded = self._load(place)
        judged = self._judged()
        for batch in self._batches(loaded):
            judged.add_policy(batch, loaded.policy)
        return judged.tally.sum_over_ranks()

    def _tilted(self, loaded: Loaded, name: str, reward_model: str | None) -> Iterator[tuple[str, Found]]:
        """Everything that one tilt of the configuration makes of a policy, by name."""
        tilt = self.config.tilts[name]
        if reward_model is None:
            yield from self._tilted_by_items(loaded, name, tilt)
            return
        temperatures = tilt.temperatures(name)
        targets = {
            temperature: Targets(
                train_counts=loaded.train_counts, min_reward=self.config.min_reward, replicates=self.config.replicates,
                seed=self.config.seed, device=self.device, low_reward=self.config.low_reward,
                high_return=self.high_return, division=self.division,
            )
            for temperature in temperatures.values()
        }  # fmt: skip
        batches = self._batches(loaded, TILT_USERS)
        model = self._reward_model(reward_model)
        found = reward_tilt_tallies(loaded.policy, model, batches, targets, loaded.recommended, self.device)
        for each, temperature in temperatures.items():
            yield each, (found[temperature].sum_over_ranks(), Further())

    def _tilted_by_items(self, loaded: Loaded, name: str, tilt: Tilt) -> Iterator[tuple[str, Found]]:
        window = loaded.policy.settings.max_length
        mean_V = item_means(self.dataset, loaded.protocol, window, tilt.strength, self.device)
        for each, temperature in tilt.temperatures(name).items():
            yield each, self._measured(loaded, ItemTilt(loaded.policy, mean_V, temperature))
