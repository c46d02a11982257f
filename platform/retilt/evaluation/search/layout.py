"""The layout of ``search.json``, and how its views find their way in it. What was not run is an absent key.

::

    {"kind": "lambda_search", "format": 1,
     "dataset": {"name", "uri", "fingerprint", "users", "items", "events", "histogram": [[reward, events], …]},
     "initial": URI, "output": URI,
     "protocol": {"metric": METRIC, "group": "high_reward" | "all", "min_reward": x,
                  "search": "halving" | "grid" | "previous", "split", "k", "epochs": of a full-length run, "seed",
                  "workers", "rungs": [{"epochs", "trials"}, …], "deciding_epochs": n, "commands": [str]},
     "identity": {"code": {"retilt", "source_sha256", "torch"}, "bootstrap": {"replicates", "seed"}},
     "grid": {"source": "auto" | "given" | "around the previous choice", "temperatures": [λ…], "learning_rates": [x…],
              "points": [{"temperature": λ, "ess": ESS/n}],
              "merged": [{"temperature": λ, "kept": λ', "ess": ESS/n, "kept_ess": ESS/n}]},
     "noise": {"method": "repeated events" | "residual around user and item means", "sd": σ, "events": used,
               "radius": ε, "failure": δ, "tolerance": τ, "reward_range": R,
               "floor": λ of eq. 15, "floor_tanh": λ of the sharper bound},
     "drift": {"previous": URI, "level": "none" | "little" | "much", "psi": x, "shifts": {name: relative change},
               "reason": str},
     "initial_policy": {METRIC: MEASURE},
     "trials": [{"name", "method": "bc" | "exp_rsft" | "top_rated" | "rsft", "temperature": λ, "learning_rate": x,
                 "state": "done" | "failed", "reason": str, "epochs": trained, "rung": index of its last,
                 "best_epoch": e, "ess": ESS/n, "kl": nats, "entropy": nats, METRIC: MEASURE, "all": {METRIC: MEASURE},
                 "deciding": {METRIC: MEASURE, "kl": nats}, "curve": [{"epoch": e, METRIC: x, "loss": x}],
                 "positions": trained, "seconds": of workers}],
     "choice": {"trial": name, "temperature": λ, "learning_rate": x, "epochs": of the best epoch,
                "best": name, "deficit": {"value", "se", "low", "high"}, "reason": str,
                "versus": {"bc": {**MEASURE, "epochs": n, "standing"}, "top_rated": {…}}, "told_from": ["bc"]},
     "cost": {"positions", "seconds", "full_run_positions", "ratio"},
     "policy": URI, "next": [command]}

    MEASURE   {"value", "low", "high"}: 95% interval over users
    METRIC    a name of ``evaluation.metrics``; beside ``all``, of the targets of ``protocol.group``
    STANDING  "better" | "worse" | "no difference" | "too few users", of ``statistics.verdict``

Everything is on validation data. ``bc`` is BC continued (λ → ∞), ``top_rated`` the other end (λ → 0); ``rsft`` is never
chosen. A trial's values are those of its best epoch so far; ``kl`` is exact, to the policy ``initial``, and like
``entropy`` absent of trials that ended before the choice was made, since both grow with the epochs; τ and R are in
the reward's unit. ``deciding`` is what a trial that went on had when the choice was made, after ``deciding_epochs``:
only such values are comparable with those of trials that stopped there. ``deficit`` is the best's value minus the
chosen's, paired. Undefined numbers are null, never NaN, and null may stand for an absent part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retilt.evaluation.metrics import NAMES, TITLES
from retilt.evaluation.views import methods
from retilt.evaluation.wording import describe

KIND, FORMAT = "lambda_search", 1
SUBJECT = "exp_rsft"
REFERENCES = ("top_rated", "bc", "rsft")
LOOKS = {"bc": "bc_continued"}
"""The arm of ``views.methods`` that a method of a trial is shown as, where the names differ."""

Search = Mapping[str, Any]
Trial = Mapping[str, Any]


def part(search: Search, name: str) -> Mapping[str, Any]:
    """A part of the layout; empty where it is absent or null."""
    return search.get(name) or {}


def metric(search: Search) -> str:
    """The metric that the choice is by."""
    return str(part(search, "protocol").get("metric", NAMES[0]))


def title(name: str) -> str:
    """What a metric is called."""
    return TITLES.get(name, name)


def where(search: Search) -> str:
    """Which validation targets the choice is by, in words."""
    protocol = part(search, "protocol")
    return describe(protocol.get("group", "all"), protocol.get("min_reward")) or "targets of high reward"


def look(method: str) -> str:
    """The arm of ``views.methods`` that a trial's method is shown as."""
    return LOOKS.get(method, method)


def called(method: str) -> str:
    """What a trial's method is called."""
    return methods.title(look(method))


def trials(search: Search) -> list[Trial]:
    """All trials by λ, from top_rated (λ → 0) to BC continued (λ → ∞), RSFT last."""
    order = ("top_rated", SUBJECT, "bc", "rsft")
    return sorted(
        search.get("trials") or [],
        key=lambda each: (
            order.index(each["method"]) if each["method"] in order else len(order),
            each.get("temperature") or 0.0,
            each.get("learning_rate") or 0.0,
        ),
    )


def done(search: Search, method: str | None = None) -> list[Trial]:
    """Trials that did not fail, of one method or all."""
    return [each for each in trials(search) if each.get("state") != "failed" and method in (None, each["method"])]


def failed(search: Search) -> list[Trial]:
    """Trials that failed."""
    return [each for each in trials(search) if each.get("state") == "failed"]


def rates(found: Sequence[Trial]) -> list[float]:
    """Learning rates of trials, the largest first."""
    return sorted({each["learning_rate"] for each in found if each.get("learning_rate") is not None}, reverse=True)


def chosen(search: Search) -> Trial | None:
    """The trial that was chosen; None if there is none among the trials."""
    name = part(search, "choice").get("trial")
    return next((each for each in trials(search) if each["name"] == name), None)


def known(measure: Mapping[str, Any] | None) -> bool:
    """Whether a measure has a value."""
    return measure is not None and measure.get("value") is not None


def decisive(trial: Trial, name: str) -> Mapping[str, Any] | None:
    """A metric of a trial when the choice was made, or when it ended if that was earlier; None if undefined."""
    for found in ((trial.get("deciding") or {}).get(name), trial.get(name)):
        if found is not None and known(found):
            return dict(found)
    return None


def in_deciding_rung(search: Search, trial: Trial) -> bool:
    """Whether the trial trained as long as those among which λ was chosen."""
    return (trial.get("epochs") or 0) >= (part(search, "protocol").get("deciding_epochs") or 0)


def best(search: Search, method: str) -> Trial | None:
    """Of a method's trials (one for each learning rate) the longest, of these the one of largest headline metric."""
    name = metric(search)
    found = [each for each in done(search, method) if known(each.get(name))]
    return max(found, key=lambda each: (each.get("epochs") or 0, each[name]["value"]), default=None)
