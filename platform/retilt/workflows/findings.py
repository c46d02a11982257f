"""What a λ search found → the layout of evaluation/search/layout.py."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retilt import storage
from retilt.cluster.trial import EXACT, RANKS, measured
from retilt.config import TrainConfig, build, plain
from retilt.evaluation import tallies
from retilt.evaluation.choice import Choice, compared, value
from retilt.evaluation.metrics import NAMES
from retilt.evaluation.report import code_version
from retilt.evaluation.statistics import Tally, summary
from retilt.training.log import logged
from retilt.workflows.trials import COMPARED, Trial

if TYPE_CHECKING:
    from retilt.workflows.search import Search

ENDS = ("value", "low", "high")


class Findings:
    """Reads what the trials have left."""

    def __init__(self, search: Search, chosen: Trial, decided: Choice | None, command: str) -> None:
        """``decided`` is None where the earlier choice was taken as it is."""
        self.search, self.chosen, self.decided, self.command = search, chosen, decided, command
        self.config, self.make, self.group, self.metric = search.config, search.make, search.group, search.metric

    def build(self) -> dict[str, Any]:
        """search.json, less ``kind`` and ``format``."""
        proposal, trials = self.search.proposal, [self._trial(each) for each in self.search.trials]
        choice = self._choice()
        found: dict[str, Any] = {
            "dataset": self._dataset(),
            "initial": self.config.initial,
            "output": self.config.output,
            "protocol": self._protocol(),
            "identity": {"code": code_version(), "bootstrap": {"replicates": self.config.replicates, "seed": 0}},
            "grid": {
                "source": proposal.source, "temperatures": proposal.temperatures, "points": proposal.points,
                "learning_rates": sorted({each.learning_rate for each in self.search.trials}),
                "merged": proposal.merged,
            },
            "noise": proposal.noise,
            "drift": proposal.drift,
            "initial_policy": _measures(tallies.read(storage.join(self.make.untrained, RANKS))[0], self.group),
            "trials": trials,
            "choice": choice,
            "cost": self._cost(trials),
            "policy": self._policy(),
            "next": list(self._next(choice["epochs"])),
        }  # fmt: skip
        return found

    def _dataset(self) -> dict[str, Any]:
        data = self.search.data
        return {
            "name": data.name, "uri": data.uri, "fingerprint": data.fingerprint, "users": data.users,
            "items": data.items, "events": data.events, "histogram": data.statistics("select").get("levels"),
        }  # fmt: skip

    def _protocol(self) -> dict[str, Any]:
        config, search = self.config, self.search
        lengths = [*search.lengths, *([config.epochs] if config.epochs not in search.lengths else [])]
        at = [sum(epochs in reached for reached in search.reached.values()) for epochs in lengths]
        return {
            "metric": self.metric, "group": self.group, "min_reward": self.make.min_reward,
            "search": "previous" if search.proposal.settled else config.search,
            "split": search.data.manifest["split"]["name"], "k": search.data.k, "epochs": config.epochs,
            "seed": config.seed, "workers": config.workers,
            "rungs": [{"epochs": each, "trials": n} for each, n in zip(lengths, at, strict=True)],
            "deciding_epochs": self.search.deciding, "commands": [self.command],
        }  # fmt: skip

    def _trial(self, trial: Trial) -> dict[str, Any]:
        reached = self.search.reached.get(trial, [])
        entry: dict[str, Any] = {
            "name": trial.name, "method": trial.method, "temperature": trial.temperature,
            "learning_rate": trial.learning_rate, "state": "failed" if trial in self.search.failures else "done",
            "reason": self.search.failures.get(trial), **self._course(trial),
        }  # fmt: skip
        if not reached:
            return entry
        place = self.make.measured(trial, reached[-1])
        facts = measured(place) or {}
        tally = tallies.read(storage.join(place, RANKS))[0]
        exact = _exact(place)
        weights = facts.get("weights") or {}
        rungs = [*self.search.lengths, self.config.epochs]
        entry |= {
            "rung": rungs.index(reached[-1]), "best_epoch": (facts.get("best") or {}).get("epoch"),
            "ess": weights.get("ess_ratio"), "kl": exact.get("kl"), "entropy": exact.get("entropy"),
            **_measures(tally, self.group), "all": _measures(tally, "all"),
        }  # fmt: skip
        if self.search.deciding in reached and reached[-1] > self.search.deciding:
            entry["deciding"] = _measures(self.search.tally(trial, self.search.deciding), self.group)
            entry["deciding"]["kl"] = _exact(self.make.measured(trial, self.search.deciding)).get("kl")
        return entry

    def _course(self, trial: Trial) -> dict[str, Any]:
        """What the run's log says: every epoch once, as a run that was continued has them."""
        records = logged(storage.join(self.config.output, "trials", trial.name))
        curve = [
            {
                "epoch": record["epoch"], "loss": record["loss"],
                **{name: record[f"validation/{name}"] for name in NAMES if f"validation/{name}" in record},
            }
            for record in records
        ]  # fmt: skip
        workers = self.config.worker_range[0]
        return {
            "epochs": len(records), "curve": curve, "seconds": sum(each["seconds"] for each in records) * workers,
            "positions": round(sum(each["seconds"] * each["positions_per_second"] for each in records)),
        }  # fmt: skip

    def _choice(self) -> dict[str, Any]:
        chosen, decided = self.chosen, self.decided
        versus = dict(self._versus())
        told = [name for name, each in versus.items() if each["standing"] == "better"]
        best_epoch = (measured(self.make.measured(chosen, self.config.epochs)) or {}).get("best") or {}
        found = {
            "trial": chosen.name, "temperature": chosen.temperature, "learning_rate": chosen.learning_rate,
            "epochs": best_epoch.get("epoch"), "best": decided.best if decided else chosen.name,
            "deficit": dict(decided.deficits[chosen.name]) if decided else None, "versus": versus, "told_from": told,
        }  # fmt: skip
        return {**found, "reason": self._reason(found)}

    def _versus(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The chosen trial against the better one each of BC continued and top-rated, at equal epochs.

        ``better`` names every λ that is better than it: the chosen one is the largest near the best, not the best.
        """
        mine = self.search.reached[self.chosen]
        for method in COMPARED:
            trials = [each for each in self.search.trials if each.method == method and each in self.search.reached]
            if not trials:
                continue
            epochs = max(set(mine) & {each for trial in trials for each in self.search.reached[trial]})
            there = [each for each in trials if epochs in self.search.reached[each]]
            theirs = [self.search.tally(each, epochs) for each in there]
            best = max(theirs, key=lambda each: value(each, self.group, self.metric))
            found = {
                each.name: compared(self.search.tally(each, epochs), best, self.group, self.metric)
                for each in self.search.lambdas
                if epochs in self.search.reached.get(each, ())
            }
            better = [name for name, each in found.items() if each["standing"] == "better"]
            yield method, {**found[self.chosen.name], "epochs": epochs, "better": better}

    def _reason(self, found: Mapping[str, Any]) -> str:
        if self.decided is None:
            return "The earlier choice stands: its data have not drifted."
        deficit, metric, deciding = found["deficit"], self.metric, self.search.deciding
        left = sum(deciding in self.search.reached.get(each, ()) for each in self.search.lambdas)
        of = "" if left == len(self.search.lambdas) else f" of the {left} trials that were left"
        if found["best"] == found["trial"]:
            largest = f"it has the highest {metric} after {deciding} epoch(s){of}, and no larger λ is as good"
        else:
            best = next(each for each in self.search.trials if each.name == found["best"])
            largest = (
                f"after {deciding} epoch(s) it is the largest λ{of} whose {metric} lacks no more than one "
                f"standard error ({deficit['se']:.4f}) of the difference to the best, λ = {best.temperature:g}: it "
                f"lacks {deficit['value']:.4f}"
            )
        return f"λ = {found['temperature']:g}: {largest}."

    def _cost(self, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        positions = sum(each.get("positions", 0) for each in trials)
        weights = (measured(self.make.measured(self.chosen, self.config.epochs)) or {}).get("weights") or {}
        whole = weights.get("positions", 0) * self.config.epochs
        return {
            "positions": positions, "seconds": sum(each["seconds"] for each in trials), "full_run_positions": whole,
            "ratio": positions / whole if whole else None,
        }  # fmt: skip

    def _policy(self) -> str:
        return storage.join(self.make.training(self.chosen, self.config.epochs).output, "policy", "best")

    def _next(self, epochs: int) -> Iterator[str]:
        config, run = self.config, self.make.training(self.chosen, self.config.epochs)
        test = storage.join(storage.parent(config.output), "test")
        policies = f"'{{bc: {config.initial}, chosen: {run.output}}}'"
        yield (
            f"python jobs/evaluate.py dataset={config.dataset} policies={policies} "
            f"min_reward={self.make.min_reward:g} part=test output={test}"
        )
        yield (
            f"python jobs/posttrain.py dataset={config.dataset} initial=URI_OF_BC_UNDER_REFIT protocol=refit "
            f"algorithm=exp_rsft {' '.join(settings_of(run))} epochs={epochs} output=…"
        )


def settings_of(run: TrainConfig) -> Iterator[str]:
    """What a run's command line says beside what is another's under refit, as ``key=value``: all but the defaults."""
    places = {"dataset": run.dataset, "initial": run.initial, "output": run.output, "epochs": run.epochs}
    others = {**places, "protocol": run.protocol, "min_reward": run.min_reward, "threads": run.threads}
    usual = dict(_flat(plain(build(TrainConfig, {**others, "algorithm": "exp_rsft"}))))
    for name, each in _flat(plain(run)):
        if usual.get(name, each) != each or name == "algorithm.temperature":
            yield f"{name}={shlex.quote(json.dumps(each)) if isinstance(each, list | dict) else _told(each)}"


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in values.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{before}{name}.")
        else:
            yield f"{before}{name}", each


def _told(each: Any) -> str:
    if isinstance(each, bool) or each is None:
        return json.dumps(each)
    return f"{each:.12g}" if isinstance(each, float) else str(each)


def _exact(place: str) -> Mapping[str, float | None]:
    """KL and entropy, where they were measured."""
    facts = measured(place) or {}
    return tallies.read(storage.join(place, EXACT))[0].means() if facts.get("exact") else {}


def _measures(tally: Tally, group: str) -> dict[str, Any]:
    found = summary(tally, group)
    return {name: {end: found[name][end] for end in ENDS} for name in NAMES}
