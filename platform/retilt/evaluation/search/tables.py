"""The tables of a λ search; plain text cells. A part that was not run gives no table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retilt.evaluation.metrics import TITLES
from retilt.evaluation.search.layout import (
    Search,
    Trial,
    called,
    done,
    failed,
    known,
    metric,
    part,
    title,
)
from retilt.evaluation.search.layout import trials as ordered
from retilt.evaluation.search.words import COMPARED, epochs, state
from retilt.evaluation.views.document import Table
from retilt.evaluation.wording import interval, number

NONE = "–"
LIMITS = {"bc": "→ ∞", "top_rated": "→ 0"}
INITIAL = "initial policy"


def trials(search: Search) -> Table | None:
    """Every trial: what it was, what it reached, how far it went; the chosen one stressed."""
    found = ordered(search)
    if not found:
        return None
    head, split = metric(search), part(search, "protocol").get("group", "all") != "all"
    early = [each for each in found if each.get("deciding")]
    after = f"{title(head)} after {epochs(part(search, 'protocol').get('deciding_epochs'))}"
    header = ["Trial", "λ", "Learning rate", "Epochs", "Best epoch", title(head)]
    header += [after] if early else []
    header += [f"{title(head)}, all targets"] if split else []
    header += ["ESS/n", "KL to BC", "Entropy", "State"]
    rows = [_row(search, each, bool(early), split) for each in found]
    bold = frozenset((i, j) for i, row in enumerate(rows) if row[-1] == "chosen" for j in range(len(row)))
    return Table(header, rows, bold)


def _row(search: Search, trial: Trial, early: bool, split: bool) -> list[str]:
    head = metric(search)
    cells = [trial["name"], _lambda(trial), _plain(trial.get("learning_rate"), "g"), _plain(trial.get("epochs"))]
    cells += [_plain(trial.get("best_epoch")), _measure(trial.get(head))]
    cells += [_value((trial.get("deciding") or {}).get(head))] if early else []
    cells += [_value((trial.get("all") or {}).get(head))] if split else []
    cells += [_plain(trial.get("ess"), ".2f"), _plain(trial.get("kl"), ".3g"), _plain(trial.get("entropy"), ".2f")]
    return [*cells, state(search, trial)]


def _lambda(trial: Trial) -> str:
    temperature = trial.get("temperature")
    return LIMITS.get(trial["method"], NONE) if temperature is None else f"{temperature:g}"


def _plain(value: float | None, form: str = "") -> str:
    return NONE if value is None else f"{value:{form}}"


def _measure(found: Mapping[str, Any] | None, sign: str = "") -> str:
    if found is None or not known(found):
        return NONE
    return interval({"low": None, "high": None, **found}, sign)


def _value(found: Mapping[str, Any] | None) -> str:
    return number((found or {}).get("value"))


def metrics(search: Search, group: str | None = None) -> Table | None:
    """Every metric of every trial, the initial policy first; ``group`` is ``all`` or None for the headline's."""
    rows = []
    first = part(search, "initial_policy")
    for name, found in [(INITIAL, {} if group else first), *((each["name"], each) for each in done(search))]:
        measures = (found.get(group) or {}) if group else found
        if any(known(measures.get(each)) for each in TITLES):
            rows.append([name, *(_measure(measures.get(each)) for each in TITLES)])
    return Table(["Trial", *TITLES.values()], rows, _largest(search, rows, group)) if rows else None


def _largest(search: Search, rows: Sequence[Sequence[str]], group: str | None) -> frozenset[tuple[int, int]]:
    """The cells of the largest value of each metric."""
    found = set()
    named = {each["name"]: (each.get(group) or {}) if group else each for each in done(search)}
    for column, name in enumerate(TITLES, start=1):
        values = [(named.get(row[0]) or {}).get(name) for row in rows]
        reached = [(each["value"], -i) for i, each in enumerate(values) if each is not None and known(each)]
        if reached:
            found.add((-max(reached)[1], column))
    return frozenset(found)


def compared(search: Search) -> Table | None:
    """What the choice was compared with: the best, BC continued, top-rated."""
    choice = part(search, "choice")
    rows = []
    if deficit := choice.get("deficit"):
        name = f"the best, {choice.get('best')}"
        if choice.get("best") == choice.get("trial"):
            name = "the best, which is the chosen one"
        least = dict(deficit) | {end: deficit.get(end) for end in ("low", "high")}
        turned = {"value": _minus(least["value"]), "low": _minus(least["high"]), "high": _minus(least["low"])}
        deciding = part(search, "protocol").get("deciding_epochs")
        rows.append([name, _plain(deciding), _measure(turned, "+"), number(deficit.get("se")), NONE])
    for name in COMPARED:
        if found := part(choice, "versus").get(name):
            standing = found.get("standing") or NONE
            rows.append([called(name), _plain(found.get("epochs")), _measure(found, "+"), NONE, standing])
    header = ["Chosen minus", "Epochs", title(metric(search)), "Standard error", "Verdict"]
    return Table(header, rows) if rows else None


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value


def points(search: Search) -> Table | None:
    """The grid: each λ with the effective sample size that it leaves."""
    found = part(search, "grid").get("points") or []
    rows = [[_plain(each["temperature"], "g"), _plain(each.get("ess"), ".3f")] for each in found]
    return Table(["λ", "ESS/n"], rows) if rows else None


def failures(search: Search) -> Table | None:
    """Trials that failed, and why."""
    rows = [[each["name"], each.get("reason") or "no reason was given"] for each in failed(search)]
    return Table(["Failed trial", "Reason"], rows, prose=True) if rows else None


def costs(search: Search) -> Table | None:
    """Positions trained and worker-seconds of each trial, of all, and of one full-length run."""
    rows = [
        [
            each["name"],
            _plain(each.get("epochs")),
            _plain(each.get("positions"), ","),
            _plain(each.get("seconds"), ",.0f"),
        ]
        for each in ordered(search)
        if each.get("positions") is not None
    ]
    found = part(search, "cost")
    if found.get("positions") is not None:
        rows.append(["all trials", "", f"{found['positions']:,}", _plain(found.get("seconds"), ",.0f")])
    if (whole := found.get("full_run_positions")) is not None:
        ratio, seconds = found.get("ratio"), found.get("seconds")
        about = NONE if not ratio or seconds is None else f"about {seconds / ratio:,.0f}"
        full = part(search, "protocol").get("epochs")
        rows.append(["one full-length run", _plain(full), f"{whole:,}", about])
    header = ["Trial", "Epochs", "Positions trained", "Worker-seconds"]
    return Table(header, rows) if rows else None


def drifts(search: Search) -> Table | None:
    """How far the data have moved since the previous choice."""
    found = part(search, "drift")
    rows = [["PSI of the rewards", _plain(found["psi"], ".3f")]] if found.get("psi") is not None else []
    rows += [[name.replace("_", " "), _plain(each, "+.1%")] for name, each in (found.get("shifts") or {}).items()]
    return Table(["Statistic", "Change"], rows) if rows else None
