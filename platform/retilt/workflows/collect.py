"""What is done so far → results.json, in the layout of evaluation/reproduction/results.py; what is missing is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from retilt import storage
from retilt.algorithms.temperatures import Histogram
from retilt.config.reproduce import CONTROLS, ONLINE, PAPER_LIKE, TILTS, TUNED
from retilt.data.dataset import Dataset
from retilt.evaluation import audit, tallies
from retilt.evaluation.metrics import NAMES
from retilt.evaluation.report import code_version
from retilt.evaluation.reproduction import seeds
from retilt.evaluation.statistics import Tally
from retilt.training.judge import since_the_start
from retilt.workflows.plan import REWARD_MODELS, SHIFTS, Plan
from retilt.workflows.running import AUDIT, AVG_REWARD, MEASURED, PAIRS, RANKS
from retilt.workflows.steps import Done, Failed, Measured, Outcome, Record, Trained, best_epoch
from retilt.workflows.tuning import Point

JUDGED = {"kl": "judge/kl", "entropy": "judge/entropy", "avg_reward": "judge/reward_model"}
"""What an epoch's record may hold of a policy beside the metrics of ranks, by its name in a curve."""

ByArm = dict[str, dict[int, Tally]]


class Collector:
    """Reads what steps have left."""

    def __init__(self, plan: Plan, done: Done, command: str) -> None:
        self.plan, self.done, self.command = plan, done, command
        self.data = Dataset.open(plan.make.dataset)
        self.arms = ("bc", *plan.arms)

    def results(self) -> dict[str, Any]:
        """Everything known, and ``not_run`` for the rest."""
        plan, ranks = self.plan, self._tallies(RANKS)
        config = plan.make.config
        found: dict[str, Any] = {
            "preset": config.preset,
            "dataset": self._described(),
            "protocol": {
                "split": self.data.manifest["split"]["name"], "k": self.data.k, "min_reward": plan.make.high,
                "seeds": plan.seeds, "epochs": plan.last, "trials": plan.trials, "headline": plan.make.headline,
                "commands": [self.command],
            },
            "identity": {"code": code_version(), "bootstrap": {"replicates": config.replicates, "seed": 0}},
            "warnings": [],
            "arms": self._arms(ranks),
            "not_run": self._not_run(ranks),
        }  # fmt: skip
        if primary := seeds.primary(ranks, plan.make.headline):
            found["primary"] = primary
        if sweep := self._sweep(ranks):
            found["lambda"] = sweep
        if shifts := list(self._shifts()):
            found["shifts"] = shifts
        if any(isinstance(tried, Trained) for arm in ONLINE if arm in self.arms for *_, tried in self._trials_of(arm)):
            found["alarms"] = list(self._alarms())
        if plan.judged:
            found["reward_models"] = {name: self._cost(name) for name in REWARD_MODELS}
        if audited := self._audit():
            found["audit"] = audited
            found["warnings"] += audit.warnings(audited)
        if "bc" in ranks:
            tally = ranks["bc"][min(ranks["bc"])]
            found["dataset"]["high_targets"] = {"test": tally.count("n", plan.make.headline)}
        return found

    def _described(self) -> dict[str, Any]:
        data = self.data
        found = {
            "name": data.name, "users": data.users, "items": data.items, "events": data.events, "uri": data.uri,
            "fingerprint": data.fingerprint, "events_per_user": data.events / data.users,
        }  # fmt: skip
        rewards = data.statistics("refit")
        return {**found, "histogram": rewards["levels"] or Histogram.of(rewards).levels}

    def _tally(self, seed: int, name: str, policy: str, kind: str) -> Tally | None:
        """What an evaluation on test has counted; None where it is not done, or has not counted that."""
        key = self.plan.test_key(seed, name)
        place = self.plan.make.place(key, policy, kind)
        if not isinstance(self.done.get(key), Measured) or not storage.exists(place):
            return None
        return tallies.read(place)[0]

    def _tallies(self, kind: str) -> ByArm:
        found: ByArm = {}
        for arm in self.arms:
            for seed in self.plan.seeds:
                if (tally := self._tally(seed, arm, arm, kind)) is not None:
                    found.setdefault(arm, {})[seed] = tally
        return found

    def _arms(self, ranks: ByArm) -> dict[str, dict[str, Any]]:
        on_test = seeds.of_arms(ranks)
        scores, pairs = seeds.of_arms(self._tallies(AVG_REWARD)), seeds.of_arms(self._tallies(PAIRS))
        found = {}
        for arm in self.arms:
            entry: dict[str, Any] = {}
            if tried := list(self._tried(arm)):
                entry["tried"] = tried
            if arm in on_test:
                entry["test"] = on_test[arm]
                entry |= self._lists(arm)
            if arm in scores:
                counts = ("n", "users", "share_never_trained")
                entry["avg_reward"] = {name: each for name, each in scores[arm]["all"].items() if name not in counts}
            if arm in pairs:
                (measured,) = (each for each in pairs[arm]["all"].values() if isinstance(each, dict))
                entry["pairwise_accuracy"] = measured
            if curve := self._curve(arm):
                entry["curve"] = curve
            if entry:
                found[arm] = {**self._about(arm), **entry}
        return found

    def _lists(self, arm: str) -> dict[str, Any]:
        """Coverage, Gini index and popularity of the lists, of the first seed that was evaluated."""
        for seed in self.plan.seeds:
            key = self.plan.test_key(seed, arm)
            if isinstance(self.done.get(key), Measured):
                found = storage.read_json(self.plan.make.place(key, MEASURED))["lists"].get(arm)
                return {"lists": found} if found else {}
        return {}

    def _about(self, arm: str) -> dict[str, Any]:
        """What an arm is and what it cost: the trials that it was chosen from are part of the price."""
        kind = "tuned" if arm == "bc" or arm in TUNED else "paper-like" if arm in PAPER_LIKE else "control"
        entry: dict[str, Any] = {"arm": kind, "chosen_on": "validation", "trials": self._trials(arm)}
        entry |= self._cost(arm)
        if (point := self._point(arm)) is not None:
            entry["algorithm"], entry["learning_rate_factor"] = dict(point.algorithm), point.factor
        if arm in TILTS and (temperature := self.plan.tilted(arm, self.done)) is not None:
            entry["algorithm"] = {"name": arm, "temperature": temperature}
        return entry

    def _cost(self, name: str) -> dict[str, Any]:
        """Positions and seconds of all workers in all runs of an arm, or of a reward model."""
        records = list(self._records(name))
        return {
            "positions": round(sum(each["seconds"] * each["positions_per_second"] for each in records)),
            "seconds": sum(each["seconds"] for each in records) * self.plan.make.config.workers,
        }

    def _trials(self, arm: str) -> int:
        return self.plan.trials if arm in TUNED or arm in TILTS else 1

    def _point(self, arm: str) -> Point | None:
        plan, done = self.plan, self.done
        chosen = plan.control(arm, plan.seeds[0], done) if arm in CONTROLS else plan.chosen(arm, done)
        return None if chosen is None else chosen.point

    def _records(self, arm: str) -> Iterator[Record]:
        """The epochs of all runs of an arm, each once: of a run that went on, the longest has the others'.

        The sweep of λ is no part of what exp_rsft was chosen from, though it lets trials go on that had lost.
        """
        config = self.plan.make.config.model_copy(update={"sweep": False})
        runs: dict[str, Sequence[Record]] = {}
        for step in Plan(replace(self.plan.make, config=config), self.plan.rewards).steps(self.done):
            outcome = self.done.get(step.key)
            if isinstance(outcome, Trained) and step.place.split("/")[2] == arm:
                # A run that is found again has the epochs that it has had since.
                epochs = outcome.epochs[: step.training.epochs]
                runs[step.place] = max(epochs, runs.get(step.place, ()), key=len)
        for each in runs.values():
            yield from each

    def _curve(self, arm: str) -> list[dict[str, Any]]:
        """Validation after each epoch of the run that an arm stands for, from where it started.

        What a reward model said of the start is what it says after an epoch less what has changed since.
        """
        return self._followed(self._stands_for(arm))

    def _followed(self, epochs: Sequence[Record]) -> list[dict[str, Any]]:
        best, outcome = self.plan.pretraining_epochs(self.done), self.done.get(self.plan.pretraining().key)
        if best is None or not epochs or not isinstance(outcome, Trained):
            return []
        records, seed = [outcome.epochs[best - 1], *epochs], self.plan.seeds[0]
        curve = [{"epoch": epoch, "seed": seed, **_measures(record)} for epoch, record in enumerate(records)]
        score = JUDGED["avg_reward"]
        if (changed := epochs[0].get(score.replace("judge/", "change/"))) is not None:
            curve[0] |= {"avg_reward": float(epochs[0][score] - changed), "kl": 0.0}
        return curve

    def _tried(self, arm: str) -> Iterator[dict[str, Any]]:
        """Every trial of a tuned method, as long as it was trained to choose; as far as they are done."""
        if arm not in TUNED:
            return
        chosen, trials = self.plan.chosen(arm, self.done), list(self._trials_of(arm))
        settings = [_setting(point) for point, _, _ in trials]
        for point, epochs, outcome in trials:
            entry: dict[str, Any] = {"name": point.name, "epochs": epochs}
            if isinstance(outcome, Failed):
                yield {**entry, "failed": outcome.reason}
            elif best := best_epoch(outcome, self.plan.pretraining().training.selection_metric, epochs):
                assert isinstance(outcome, Trained)
                entry |= {"best_epoch": best[0], "value": best[1]}
                if arm in ONLINE:
                    entry["curve"] = self._followed(outcome.epochs[:epochs])
                if chosen is not None and point == chosen.point:
                    entry |= {"chosen": True, "end_of_grid": _setting(point) in (min(settings), max(settings))}
                yield entry

    def _trials_of(self, arm: str) -> Iterator[tuple[Point, int, Outcome]]:
        """Trials of a method, or its run with fixed settings: how long each was trained, and what came of it."""
        chosen = self.plan.chosen(arm, self.done)
        turns = self.plan.turns(arm, self.done) if arm in TUNED else [(chosen.point, chosen.epochs)] if chosen else []
        longest: dict[str, tuple[Point, int, Outcome]] = {}
        for point, epochs in turns:
            key = self.plan.trial(arm, point, epochs, self.done).key
            if key in self.done:  # a trial that goes on is what it was until then
                longest[point.name] = point, epochs, self.done[key]
        yield from longest.values()

    def _stands_for(self, arm: str) -> Sequence[Record]:
        """The epochs of the run under ``select`` that was chosen for an arm."""
        chosen = self.plan.chosen(arm, self.done)
        if chosen is None:
            return ()
        outcome = self.done.get(self.plan.trial(arm, chosen.point, self.plan.last, self.done).key)
        return outcome.epochs if isinstance(outcome, Trained) else ()

    def _sweep(self, ranks: ByArm) -> list[dict[str, Any]]:
        chosen = self.plan.chosen("exp_rsft", self.done) if "exp_rsft" in self.plan.arms else None
        if chosen is None:
            return []
        epochs: dict[str, dict[float, dict[int, Tally]]] = {"best": {}, "last": {}}
        ess: dict[float, float] = {}
        for point in self.plan.sweep(self.done):
            temperature = float(point.algorithm["temperature"])
            outcome = self.done.get(self.plan.trial("exp_rsft", point, self.plan.last, self.done).key)
            if isinstance(outcome, Trained):
                ess[temperature] = float(outcome.weights["ess_ratio"])
            for which, sweep in epochs.items():
                for seed in self.plan.seeds:
                    if (tally := self._tally(seed, f"lambda/{temperature:g}/{which}", which, RANKS)) is not None:
                        sweep.setdefault(temperature, {})[seed] = tally
        opponents: dict[str, dict[int, Tally]] = {name: ranks[name] for name in ("bc", "top_rated") if name in ranks}
        best = float(chosen.point.algorithm["temperature"])
        found = seeds.temperatures(epochs, best, self.plan.make.headline, opponents)
        return [{**each, "ess": ess.get(each["temperature"])} for each in found]

    def _shifts(self) -> Iterator[dict[str, Any]]:
        """The λ with the best validation for each shift, of the seeds with which its grid is done."""
        plan = self.plan
        for kind, amount in SHIFTS if plan.make.config.sweep and "exp_rsft" in plan.arms else ():
            curves = {str(seed): curve for seed in plan.seeds if (curve := self._shifted(kind, amount, seed))}
            if curves:
                chosen = {seed: max(curve, key=curve.__getitem__) for seed, curve in curves.items()}
                grid = [
                    (each, sum(curve[each] for curve in curves.values()) / len(curves))
                    for each in next(iter(curves.values()))
                ]
                named = {seed: {f"{each:g}": value for each, value in curve.items()} for seed, curve in curves.items()}
                yield {"kind": kind, "amount": amount, "chosen": chosen, "grid": grid, "curves": named}

    def _shifted(self, kind: str, amount: float, seed: int) -> dict[float, float]:
        """NDCG@10 by λ on validation; empty before all λ are done."""
        plan, found = self.plan, dict[float, float]()
        points = plan.sweep(self.done)
        for point in points:
            step = plan.shift_judged(kind, amount, point, seed, self.done)
            outcome = self.done.get(step.key)
            value = None
            if isinstance(outcome, Measured):
                (value,) = outcome.values.values()
            elif best := best_epoch(outcome, plan.pretraining().training.selection_metric, plan.shift_epochs):
                value = best[1]
            if value is not None:
                found[float(point.algorithm["temperature"])] = value
        return found if len(found) == len(points) else {}

    def _alarms(self) -> Iterator[dict[str, Any]]:
        """Trials, and runs with fixed settings, that their reward model found better and that were worse, or both.

        Those that lost count too: where validation had not looked, one of them might have been taken.
        """
        for arm in (arm for arm in self.arms if arm in ONLINE):
            chosen = self.plan.chosen(arm, self.done)
            for point, epochs, outcome in self._trials_of(arm):
                found: dict[str, list[Record]] = {}
                for record in outcome.epochs[:epochs] if isinstance(outcome, Trained) else ():
                    if "alarm" in record:
                        found.setdefault(record["alarm"], []).append(record)
                for kind, records in found.items():
                    yield {
                        "arm": arm, "trial": point.name, "chosen": chosen is not None and point == chosen.point,
                        "seed": self.plan.seeds[0], "kind": kind, "epochs": [each["epoch"] for each in records],
                        "evidence": since_the_start(records[0]),
                    }  # fmt: skip

    def _audit(self) -> dict[str, Any] | None:
        key = self.plan.test_key(self.plan.seeds[0], "audit")
        if key not in self.done or isinstance(self.done[key], Failed):
            return None
        return dict(storage.read_json(self.plan.make.place(key, AUDIT)))

    def _not_run(self, ranks: ByArm) -> list[dict[str, str]]:
        """Steps that failed, with their reason, and arms that are not there with every seed."""
        wanted = [step.key for step in self.plan.steps(self.done)]
        failed = {key: each for key in wanted if isinstance(each := self.done.get(key), Failed)}
        found = [{"what": key, "why": each.reason} for key, each in failed.items()]
        for arm in self.arms:
            missing = [seed for seed in self.plan.seeds if seed not in ranks.get(arm, {})]
            if missing:
                every = len(missing) == len(self.plan.seeds)
                what = arm if every else f"{arm}, seed {', '.join(map(str, missing))}"
                found.append({"what": what, "why": "not finished; the same command continues"})
        return found


def _setting(point: Point) -> float:
    """What a grid is laid over: λ or c, and where there is neither the learning rate."""
    return float(point.algorithm.get("temperature", point.algorithm.get("baseline", point.factor)))


def _measures(record: Record) -> dict[str, float]:
    names = {**{name: f"validation/{name}" for name in NAMES}, **JUDGED}
    return {name: float(record[key]) for name, key in names.items() if key in record}
