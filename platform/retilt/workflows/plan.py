"""The plan of a reproduction: from what is done so far, every step whose configuration is known by now.

A pure function of configuration and outcomes. Asked again after each outcome it goes on where choices were missing, so
resuming, order and estimates need nothing else. Below the output ``seed-S/select/`` holds what validation chooses on
(S the first seed), ``seed-S/refit/`` what is trained on all events before test, ``seed-S/test/`` its evaluation there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retilt.algorithms.temperatures import Histogram
from retilt.config.reproduce import CONTROLS, ONLINE, PAPER_LIKE, PREDICTED, TILTS, TUNED
from retilt.workflows import tuning
from retilt.workflows.making import Maker, Protocol
from retilt.workflows.steps import Derived, Done, Failed, Measured, Step, Trained, best_epoch
from retilt.workflows.tuning import Chosen, Point, Rung

NEVER = float("-inf")
PARTS = 4
"""Of behaviour cloning, after each of which its best epoch so far is asked for."""
REWARD_MODELS: Mapping[str, Point] = {
    "reward_model": Point({"name": "reward_model", "variant": "paper", "users": [0.0, 0.75]}, 1.0),
    "judge": Point({"name": "reward_model", "variant": "paper", "users": [0.75, 1.0]}, 1.0),
    "strong": Point({"name": "reward_model", "variant": "strong", "users": [0.0, 0.75]}, 1.0),
}
"""The one that dpo and ppo learn from, one of disjoint users that judges beside it, and the best that we can do."""
JUDGES = {"training": "reward_model", "judge": "judge"}
"""Reward models whose opinion of a policy's draws is reported, by their names there."""
AS_PUBLISHED: Mapping[str, Point] = {
    "dpo_paper": Point({"name": "dpo", "labels": "hard"}, 1.0),
    "ppo_paper": Point({"name": "ppo"}, 1.0),
}
"""Settings of arms that are not tuned: the paper names neither β nor λ, so they are the defaults."""
CHANGED: Mapping[str, Mapping[str, Any]] = {
    "exp_rsft_permuted": {"name": "permuted"},
    "exp_rsft_item_mean": {"name": "item_mean"},
}
"""What is done to the training rewards that a control sees."""


LEAST_ABOVE = 0.001
"""How far above the least effective sample size, which only λ → 0 leaves, a control's λ stays."""
SHIFTS = (("noise", 0.0), ("noise", 1.0), ("noise", 2.0), ("thinned", 1.0), ("thinned", 0.25))
"""How training data are changed to see where the best λ goes: SD of noise on rewards, share of users that are kept."""
SHIFTS_FROM = {"noise": 0.0, "thinned": 1.0}
"""The amount of each kind that changes nothing."""
AS_LOGGED = "as_logged"


@dataclass(frozen=True)
class Plan:
    """What is to be done; ``rewards`` are the statistics of the training rewards under ``select``."""

    make: Maker
    rewards: Mapping[str, Any]

    @property
    def arms(self) -> Sequence[str]:
        """What is compared with BC."""
        given = self.make.config.arms
        return (*TUNED, *PAPER_LIKE, *TILTS, *CONTROLS) if given is None else given

    @property
    def seeds(self) -> list[int]:
        """The first is the one that everything is chosen on."""
        return self.make.config.seed_list

    @property
    def trials(self) -> int:
        """Validation trials of each method."""
        return self.make.config.trials or self.make.preset.trials

    @property
    def rungs(self) -> list[Rung]:
        """How trials are halved."""
        config, preset = self.make.config, self.make.preset
        *some, last = preset.epochs
        most = config.epochs or (preset.paper_epochs if config.paper_epochs else last)
        return tuning.rungs(self.trials, [*(each for each in some if each < most), most])

    @property
    def last(self) -> int:
        """Epochs of post-training at most."""
        return self.rungs[-1].epochs

    @property
    def judged(self) -> bool:
        """Whether reward models are trained: some arm needs one."""
        return any(arm in (*ONLINE, *PREDICTED, "tilt_rm") for arm in self.arms)

    def steps(self, done: Done) -> Iterator[Step]:
        """Every step whose configuration is known, done or not, in the order in which they matter."""
        yield from self._pretrained(done)
        if self.pretraining_epochs(done) is None:
            return
        first, *others = self.seeds
        if self.judged:
            yield from (self.reward_model("select", first, name, done) for name in JUDGES.values())
        yield from self._started(first, done)
        for arm in self.arms:
            yield from self._selected(arm, done)
            yield from self._refitted(first, arm, done)
        if self.judged:
            yield from self._audited(first, done)
        for seed in others:
            yield from self._started(seed, done)
            for arm in self.arms:
                yield from self._refitted(seed, arm, done)
        if self.make.config.sweep and "exp_rsft" in self.arms:
            yield from self._swept(done)
            for seed in self.seeds:
                yield from self._shifted(seed, done)

    # What validation chooses.

    def _pretrained(self, done: Done) -> Iterator[Step]:
        """Behaviour cloning under ``select``, a part after the other, and beside it that under ``refit``.

        The best epoch so far can only give way to a later one, so ``refit`` may go that far before the last is known:
        all else waits for them, and lanes would be idle.
        """
        metric, last = self.pretraining().training.selection_metric, self.pretraining().training.epochs
        best = None
        for part in range(1, PARTS + 1):
            step = self.make.pretraining("select", self.seeds[0], -(-last * part // PARTS))
            yield step
            if (found := best_epoch(done.get(step.key), metric, step.training.epochs)) is None:
                break
            best = found[0]
        if best is not None and self.pretraining_epochs(done) is None:
            yield from (self.make.pretraining("refit", seed, best) for seed in self.seeds)

    def pretraining(self) -> Step:
        """Behaviour cloning under ``select``: validation chooses its number of epochs."""
        epochs = self.make.config.pretraining_epochs or self.make.preset.pretraining_epochs
        return self.make.pretraining("select", self.seeds[0], epochs)

    def pretraining_epochs(self, done: Done) -> int | None:
        """The epoch of behaviour cloning with the best validation; None before it is known."""
        step = self.pretraining()
        found = best_epoch(done.get(step.key), step.training.selection_metric)
        return None if found is None else found[0]

    def trial(self, arm: str, point: Point, epochs: int, done: Done) -> Step:
        """A trial under ``select``; with more epochs the same run goes on."""
        teacher = self.reward_model("select", self.seeds[0], "reward_model", done) if arm in ONLINE else None
        name = f"{arm}/{point.name}"
        return self.make.post("select", self.seeds[0], name, point, epochs, self.pretraining(), reward_model=teacher)

    def _selected(self, arm: str, done: Done) -> Iterator[Step]:
        """What an arm needs under ``select``: its trials as far as they are known, or a run with fixed settings."""
        if arm in TUNED:
            yield from (self.trial(arm, point, epochs, done) for point, epochs in self.turns(arm, done))
        elif arm in AS_PUBLISHED:
            yield self.trial(arm, AS_PUBLISHED[arm], self.last, done)
        elif arm in TILTS:
            yield self.tilting(arm, done)

    def tilting(self, arm: str, done: Done) -> Step:
        """BC tilted by every λ of a grid of as many as a method has trials, on validation."""
        first = self.seeds[0]
        judge = self.reward_model("select", first, "reward_model", done) if arm == "tilt_rm" else None
        key = f"seed-{first}/select/{arm}"
        grid = tuning.lambdas(self.trials, self.rewards)
        return self.make.evaluation(key, "validation", self.pretraining(), arm, tilt=grid, by=judge, further=False)

    def turns(self, arm: str, done: Done) -> list[tuple[Point, int]]:
        """Every trial of a method and how long it is to train, rung after rung, as far as results decide that."""

        def score(point: Point, epochs: int) -> float | None:
            step = self.trial(arm, point, epochs, done)
            outcome = done.get(step.key)
            if isinstance(outcome, Failed):
                return NEVER
            found = best_epoch(outcome, step.training.selection_metric, epochs)
            return None if found is None else found[1]

        return tuning.survivors(tuning.grid(arm, self.trials, self.rewards), self.rungs, score)

    def chosen(self, arm: str, done: Done) -> Chosen | None:
        """What validation chose for an arm, its epoch too; None before it is known, and where every trial failed."""
        if arm in AS_PUBLISHED:
            return Chosen(AS_PUBLISHED[arm], self.last, 1)
        for point, epochs in self.turns(arm, done) if arm in TUNED else ():
            step = self.trial(arm, point, epochs, done)
            best = best_epoch(done.get(step.key), step.training.selection_metric, epochs)
            if epochs == self.last and best is not None:
                return Chosen(point, best[0], self.trials)
        return None

    def tilted(self, arm: str, done: Done) -> float | None:
        """The λ of a tilt with the best validation; None before it is known."""
        outcome = done.get(self.tilting(arm, done).key)
        if not isinstance(outcome, Measured):
            return None
        best = max(outcome.values, key=lambda name: outcome.values[name])
        return float(best.rpartition("/")[2])

    # What is trained on everything before test, and its evaluation.

    def start(self, protocol: Protocol, seed: int, done: Done) -> Step:
        """The BC policy of a seed, from which its arms start."""
        if protocol == "select":
            return self.pretraining()
        epochs = self.pretraining_epochs(done)
        assert epochs is not None
        return self.make.pretraining("refit", seed, epochs)

    def reward_model(self, protocol: Protocol, seed: int, name: str, done: Done) -> Step:
        """A reward model on the seed's BC policy."""
        epochs = self.make.preset.reward_epochs
        return self.make.post(protocol, seed, name, REWARD_MODELS[name], epochs, self.start(protocol, seed, done))

    def _started(self, seed: int, done: Done) -> Iterator[Step]:
        """BC and its reward models."""
        start = self.start("refit", seed, done)
        yield start
        if self.judged:
            yield from (self.reward_model("refit", seed, name, done) for name in JUDGES.values())
        yield self.test(seed, "bc", start, done)

    def _audited(self, seed: int, done: Done) -> Iterator[Step]:
        """Both variants of the reward model on the rewards of the test part."""
        models = {name: self.reward_model("refit", seed, name, done) for name in ("reward_model", "strong")}
        yield from models.values()
        yield self.make.audit(self.test_key(seed, "audit"), models)

    def _refitted(self, seed: int, arm: str, done: Done) -> Iterator[Step]:
        """An arm as it was chosen, with fresh random numbers, and its evaluation on test."""
        start = self.start("refit", seed, done)
        if arm in TILTS:
            if (temperature := self.tilted(arm, done)) is not None:
                judge = self.reward_model("refit", seed, "reward_model", done) if arm == "tilt_rm" else None
                key = self.test_key(seed, arm)
                yield self.make.evaluation(key, "test", start, arm, tilt=[temperature], by=judge)
            return
        chosen, data = self.chosen(arm, done), None
        if arm in CONTROLS:
            data = None if self.chosen("exp_rsft", done) is None else self._changed(arm, seed, done)
            if data is not None:
                yield data
            chosen = self.control(arm, seed, done)
        if chosen is not None:
            teacher = self.reward_model("refit", seed, "reward_model", done) if arm in ONLINE else None
            run = self.make.post(
                "refit", seed, arm, chosen.point, chosen.epochs, start, data=data, reward_model=teacher
            )
            yield run
            yield self.test(seed, arm, run, done)

    def _changed(self, arm: str, seed: int, done: Done) -> Step | None:
        """The data set with the training rewards that a control sees; None where they are the logged ones."""
        key = f"seed-{seed}/data/{arm}"
        if arm in CHANGED:
            return self.make.derivation(key, CHANGED[arm], seed, "refit")
        if arm in PREDICTED:
            policy = self.start("refit", seed, done) if arm == "exp_rsft_advantage" else None
            model = self.reward_model("refit", seed, "reward_model", done)
            return self.make.prediction(key, model, policy, seed, "refit")
        return None

    def control(self, arm: str, seed: int, done: Done) -> Chosen | None:
        """exp_rsft as it was chosen, with one thing changed that could explain its gain; None before it is known.

        Where other numbers stand in the rewards' place, λ leaves as large an effective sample size as the chosen λ does
        of the rewards: at the same λ, numbers that are spread otherwise would be followed more or less than these.
        """
        chosen = self.chosen("exp_rsft", done)
        if chosen is None:
            return None
        settings: dict[str, Any]
        ess_ratio = Histogram.of(self.rewards).ess(chosen.point.algorithm["temperature"])
        if arm == "exp_rsft_trajectory":
            # Of returns that are normally distributed, in SDs: E[w]² / E[w²] = exp(−1/λ²).
            settings = {"level": "trajectory", "temperature": _shown(1 / math.sqrt(-math.log(ess_ratio)))}
        elif arm == "exp_rsft_at_rsft_ess":
            if (rival := self.chosen("rsft", done)) is None:
                return None
            outcome = done[self.trial("rsft", rival.point, self.last, done).key]
            assert isinstance(outcome, Trained)
            settings = {"temperature": _followed(Histogram.of(self.rewards), outcome.weights["ess_ratio"])}
        elif arm == "exp_rsft_permuted":
            return chosen
        else:
            made = self._changed(arm, seed, done)
            derived = None if made is None else done.get(made.key)
            if not isinstance(derived, Derived):
                return None
            if derived.rewards["reward_min"] == derived.rewards["reward_max"]:
                return chosen  # the run then says why it is refused
            settings = {"temperature": _shown(_followed(Histogram.of(derived.rewards), ess_ratio))}
        return Chosen(Point({"name": "exp_rsft", **settings}, chosen.point.factor), chosen.epochs, 1)

    def test(self, seed: int, name: str, run: Step, done: Done) -> Step:
        """A run's policy on the test part, its draws scored by the reward models that there are."""
        judges = {}
        if self.judged:
            found = {judge: self.reward_model("refit", seed, name, done) for judge, name in JUDGES.items()}
            judges = {judge: step for judge, step in found.items() if not isinstance(done.get(step.key), Failed)}
        start = self.start("refit", seed, done) if judges else None
        return self.make.evaluation(self.test_key(seed, name), "test", run, name, judges=judges, reference=start)

    def test_key(self, seed: int, name: str) -> str:
        """Key of the evaluation of an arm, or of a point of the sweep."""
        return f"seed-{seed}/test/{name}"

    # How quality follows from λ.

    def _swept(self, done: Done) -> Iterator[Step]:
        """exp_rsft over the grid of λ at the chosen learning rate: on validation for the best epoch, then on test.

        A run is evaluated after its best epoch, goes on, and is evaluated after the last.
        """
        for point in self.sweep(done):
            trial = self.trial("exp_rsft", point, self.last, done)
            yield trial
            if (best := best_epoch(done.get(trial.key), trial.training.selection_metric)) is not None:
                for seed in self.seeds:
                    yield from self._swept_at(point, best[0], seed, done)

    def _swept_at(self, point: Point, best: int, seed: int, done: Done) -> Iterator[Step]:
        start, name = self.start("refit", seed, done), f"lambda/{point.algorithm['temperature']:g}"
        first, longer = (self.make.post("refit", seed, name, point, epochs, start) for epochs in (best, self.last))
        tests = {
            which: self.make.evaluation(self.test_key(seed, f"{name}/{which}"), "test", run, which)
            for which, run in (("best", first), ("last", longer))
        }
        yield from (first, tests["best"])
        if longer is not first:
            yield replace(longer, needs=(*longer.needs, tests["best"].key))
        yield tests["last"]

    def sweep(self, done: Done) -> list[Point]:
        """The grid of λ at the learning rate that was chosen for exp_rsft; empty before it is."""
        if (chosen := self.chosen("exp_rsft", done)) is None:
            return []
        grid = tuning.grid("exp_rsft", self.trials, self.rewards)
        return [point for point in grid if point.factor == chosen.point.factor]

    # How the best λ moves when something else does.

    def _shifted(self, seed: int, done: Done) -> Iterator[Step]:
        """The grid of λ on training rewards with noise added, and with fewer users, judged on the same validation."""
        for kind, amount in SHIFTS:
            if (data := self._shift_data(kind, amount, seed)) is not None:
                yield data
            for point in self.sweep(done):
                run = self.shifted(kind, amount, point, seed, done)
                yield run
                if (judged := self.shift_judged(kind, amount, point, seed, done)) is not run:
                    yield judged

    @property
    def shift_epochs(self) -> int:
        """Epochs of a run with shifted data: those of the rung before the last."""
        return self.rungs[max(0, len(self.rungs) - 2)].epochs

    def _shift_data(self, kind: str, amount: float, seed: int) -> Step | None:
        """The data set of a shift; None for the one without a change."""
        if amount == SHIFTS_FROM[kind]:
            return None
        change = {"name": "noisy", "sd": amount} if kind == "noise" else {"name": "thinned", "share": amount}
        return self.make.derivation(f"seed-{seed}/data/{kind}-{amount:g}", change, seed, "select")

    def shifted(self, kind: str, amount: float, point: Point, seed: int, done: Done) -> Step:
        """One λ on the data of a shift, also where little of the data counts: that λ should lose, not be missing.

        All seeds start from the policy that trials start from, as no other is trained on what comes before validation.
        """
        data = self._shift_data(kind, amount, seed)
        if data is None and seed == self.seeds[0]:
            return self.trial("exp_rsft", point, self.shift_epochs, done)
        name = f"shifts/{AS_LOGGED if data is None else f'{kind}-{amount:g}'}/{point.name}"
        point = Point({**point.algorithm, "allow_low_ess": True}, point.factor)
        return self.make.post("select", seed, name, point, self.shift_epochs, self.pretraining(), data=data)

    def shift_judged(self, kind: str, amount: float, point: Point, seed: int, done: Done) -> Step:
        """The step that says how good that λ is for *all* users' validation: the run, or where it had fewer of them, an
        evaluation of its best epoch."""
        run = self.shifted(kind, amount, point, seed, done)
        if kind == "noise" or amount == SHIFTS_FROM[kind]:
            return run
        key = f"seed-{seed}/select/shifts/{kind}-{amount:g}/all_users/{point.name}"
        return self.make.evaluation(key, "validation", run, "exp_rsft", further=False)


def _followed(rewards: Histogram, ess_ratio: float) -> float:
    """λ that leaves so large an effective sample size, or where none leaves so little, nearly the least."""
    return rewards.temperature(max(ess_ratio, rewards.least_ess + LEAST_ABOVE * (1 - rewards.least_ess)))


def _shown(temperature: float) -> float:
    """Three digits, as a table shows it."""
    return float(f"{temperature:.3g}")
