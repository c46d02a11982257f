"""jobs/tune_lambda.py: a grid of λ, trials rung by rung, the choice on validation data, and a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from retilt import lease, storage
from retilt.algorithms.temperatures import Histogram
from retilt.cluster import resources, session
from retilt.cluster.display import say
from retilt.cluster.lanes import most
from retilt.cluster.rungs import run_rung
from retilt.cluster.trial import RANKS, measured
from retilt.config.tune import TuneConfig
from retilt.data.dataset import Dataset
from retilt.evaluation import tallies
from retilt.evaluation.choice import Candidate, Choice, choose, value
from retilt.evaluation.groups import headline
from retilt.evaluation.search import report
from retilt.evaluation.statistics import Tally
from retilt.settings import identity_hash
from retilt.training import checkpoint, planning
from retilt.training.parallel import choose_device
from retilt.training.planning import Sizes
from retilt.training.run import plan_run
from retilt.types import InputError, TrainingError
from retilt.workflows.findings import Findings
from retilt.workflows.proposing import FACTS, Proposal, facts, propose
from retilt.workflows.trials import Maker, Trial, first_epochs, grid, survivors
from retilt.workflows.watching import Trials

OURS = ("trials", "measured", report.FIGURES, lease.LEASE, report.SEARCH, report.HTML, report.MARKDOWN, FACTS)
"""What a search writes to its output."""
PLACES = ("dataset", "initial", "output", "previous")
"""Keys that are URIs."""


def run(config: TuneConfig, dry_run: bool = False) -> dict[str, Any]:
    """Search λ, continue a search, or find it finished; returns what search.json holds.

    Raises:
        InputError: inputs that no trial could train on, an output that holds something else, a cluster without room.
        TrainingError: no λ could be trained.
        StorageError: a store failed; the same command continues.
        Stopped: SIGTERM; the same command continues.
    """
    # Trials do not run in this process's folder.
    places = {key: storage.absolute(place) for key in PLACES if (place := getattr(config, key))}
    config = config.model_copy(update=places)
    _require_shared(config)
    data = Dataset.open(config.dataset)
    data.require_files()
    rewards = data.statistics("select")
    Histogram.of(rewards)  # refuses rewards that are all equal
    assert config.initial is not None
    policy = checkpoint.fingerprint(checkpoint.find(config.initial))
    identity = identity_hash(config, dataset=data.fingerprint, initial=policy)
    _require_ours(config.output, identity)
    minimum = _quartile(rewards) if config.min_reward is None else config.min_reward
    proposal = propose(config, data, rewards)
    search = Search(config, data, proposal, Maker(config, rewards, minimum))
    search.check()
    for line in search.describe():
        say(line)
    if dry_run:
        return {}
    with session.connect():
        _require_shared(config)
        # Before anything is written: refuses a grid of which not even one trial could ever have room.
        room = most(config.worker_range[0], config.threads, config.device)
        with lease.hold(config.output):
            storage.write_json(storage.join(config.output, FACTS), facts(config, proposal, data, identity))
            return search.run(min(room, config.concurrency or room))


def _require_shared(config: TuneConfig) -> None:
    for key in PLACES:
        if place := getattr(config, key):
            session.require_shared(place, key, config.storage.shared_filesystem)


def _require_ours(output: str, identity: str) -> None:
    """Refuse a folder that holds something else, or a search of other settings."""
    storage.require_writable(output)
    for file in storage.list_files(output):
        if file.path.partition("/")[0] not in OURS:
            raise InputError(f"{output} holds something else ({file.path}); choose another output for the search")
    place = storage.join(output, FACTS)
    if storage.exists(place) and storage.read_json(place).get("identity") != identity:
        raise InputError(
            f"{output} holds a search with other settings, other data or another initial policy; choose another output "
            "(λ and learning rates may be added to a search)"
        )


def _quartile(rewards: Mapping[str, Any]) -> float:
    quantiles = rewards["quantiles"]
    return float(quantiles[round(0.75 * (len(quantiles) - 1))])


class Search:
    """A search, from its trials to its report."""

    def __init__(self, config: TuneConfig, data: Dataset, proposal: Proposal, make: Maker) -> None:
        self.config, self.data, self.proposal = config, data, proposal
        self.trials = grid(proposal.temperatures, proposal.rates)
        if proposal.settled:
            self.trials = [each for each in self.trials if each.method == "exp_rsft"]
        self.lambdas = [each for each in self.trials if each.method == "exp_rsft"]
        self.group, self.metric = headline(make.min_reward), config.selection_metric
        self.lengths = [] if proposal.settled else first_epochs(config.search, len(self.lambdas), config.epochs)
        self.deciding = self.lengths[-1] if self.lengths else config.epochs
        """Epochs after which the choice is made."""
        self.make = replace(make, exact_from=self.deciding)
        self.reached: dict[Trial, list[int]] = {}
        """Epochs after which a trial was measured, ascending."""
        self.failures: dict[Trial, str] = {}
        self.room = 1

    def check(self) -> None:
        """Refuse what no trial could do, before any begins."""
        planned = plan_run(self.make.training(self.lambdas[0], self.config.epochs))
        if planned.warning:
            say(f"warning: {planned.warning}")
        self._require_memory(1)

    def _require_memory(self, trials: int) -> None:
        """Refuse what has no room in memory, so many trials side by side."""
        planned, config = plan_run(self.make.training(self.lambdas[0], self.config.epochs)), self.config
        gpu = choose_device(config.device).type == "cuda"
        planning.require_room(
            Sizes.of(planned.config, self.data),
            lambda workers: resources.room_of_worker(trials * workers, config.threads, gpu, config.memory_per_worker),
        )

    def describe(self) -> list[str]:
        """What will be done, before it is done."""
        config, last = self.config, [self.config.epochs]
        rungs = ", ".join(f"{each}" for each in sorted({*self.lengths, *last}))
        return [
            f"λ by {self.metric} on the validation targets of at least {self.make.min_reward:g} in {self.data.name}: "
            f"{self.data.users:,} users, {self.data.items:,} items",
            *self.proposal.describe(),
            f"{config.search}: {len(self.trials)} trials, with BC, top-rated and RSFT, of {config.workers} worker(s), "
            f"compared after {rungs} epochs; writes to {config.output}",
        ]

    def run(self, room: int) -> dict[str, Any]:
        """All rungs, up to ``room`` trials side by side, the choice, and the report."""
        self.room = room
        self._require_memory(min(room, len(self.trials)))
        alive = self.trials
        for number, epochs in enumerate(self.lengths):
            alive = self._rung(epochs, survivors(alive, self._score) if number else alive)
            self._require_targets(alive)
        decided, chosen = self._trained_on([each for each in alive if each.method == "exp_rsft"])
        found = Findings(self, chosen, decided, shlex.join(["python", *sys.argv])).build()
        report.write(self.config.output, found)
        for line in report.summary(found):
            say(line)
        return found

    def _trained_on(self, candidates: list[Trial]) -> tuple[Choice | None, Trial]:
        """The choice, and the chosen trial with all its epochs; where it fails on the way, the next choice."""
        while True:
            decided = self._choose(candidates) if self.lengths else None
            chosen = self._named(decided.chosen) if decided else self.lambdas[0]
            if self._rung(self.config.epochs, [chosen]):
                return decided, chosen
            say(f"{chosen.name}, which was chosen, could not be trained on: {self.failures[chosen]}")
            candidates = [each for each in candidates if each is not chosen]
            if not self.lengths:
                self._choose(candidates)  # there is no other: says why

    def _choose(self, candidates: Sequence[Trial]) -> Choice:
        if not candidates:
            reasons = "; ".join(f"{each.name}: {reason}" for each, reason in self.failures.items())
            raise TrainingError(f"no λ could be trained ({reasons})")
        whole = [Candidate(each.name, each.temperature or 0.0, self.tally(each)) for each in candidates]
        return choose(whole, self.group, self.metric)

    def _require_targets(self, measured: Sequence[Trial]) -> None:
        """Refuse a group of targets that is empty; how many there are is known when one policy was measured."""
        if measured and not self.tally(measured[0]).count("n", self.group):
            raise InputError(
                f"no validation target has a reward of at least {self.make.min_reward:g}, so nothing can be chosen by "
                "them; give a smaller min_reward"
            )

    def _rung(self, epochs: int, trials: Sequence[Trial]) -> list[Trial]:
        """Train to so many epochs and measure what is not there yet; those that have not failed."""
        tasks = [self.make.task(each, epochs) for each in trials]
        if not self.reached:
            tasks.insert(0, self.make.initial_task())
        tasks = [task for task in tasks if measured(task["measured"]) is None]
        if tasks:
            at_once = min(self.room, len(tasks))
            first = ", the initial policy as it is among them" if tasks[0]["training"] is None else ""
            say(f"{len(tasks)} trial(s) to {epochs} epoch(s), {at_once} at once{first}")
            watch = Trials(len(tasks))
            with watch():
                failed = run_rung(tasks, at_once=at_once, stop_seconds=self.config.stop_seconds, show=watch.show)
            if "initial" in failed:
                raise TrainingError(f"the initial policy could not be measured: {failed['initial']}")
            self.failures |= {each: failed[each.name] for each in trials if each.name in failed}
        alive = [each for each in trials if each not in self.failures]
        for each in alive:
            before = self.reached.setdefault(each, [])
            self.reached[each] = sorted({*before, epochs})
        return alive

    def tally(self, trial: Trial, epochs: int | None = None) -> Tally:
        """What a trial reached after so many epochs, the most if None."""
        place = self.make.measured(trial, self.reached[trial][-1] if epochs is None else epochs)
        return tallies.read(storage.join(place, RANKS))[0]

    def _score(self, trial: Trial) -> float:
        return value(self.tally(trial), self.group, self.metric)

    def _named(self, name: str) -> Trial:
        return next(each for each in self.trials if each.name == name)
