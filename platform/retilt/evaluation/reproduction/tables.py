"""The paper's tables from results; plain text cells, no layout. A part that was not run gives no table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retilt.evaluation.gains import IN_WORDS, LOW
from retilt.evaluation.groups import WITHIN
from retilt.evaluation.metrics import TITLES
from retilt.evaluation.reproduction.published import COLUMNS, PUBLISHED
from retilt.evaluation.reproduction.results import HEADLINE_METRIC, Results, headline, reached, versus
from retilt.evaluation.reproduction.seeds import standing
from retilt.evaluation.views.document import Table
from retilt.evaluation.views.methods import ordered, title
from retilt.evaluation.wording import interval, number

PREDICTORS = {
    "user_mean": "User mean",
    "item_mean": "Item mean",
    "global_mean": "Global mean",
    "user_item_bias": "User + item bias",
    "user_item_bias_so_far": "User + item bias, told rewards so far",
    "reward_model": "Reward model",
    "strong": "Strong reward model",
}
JUDGES = {"training": "Avg reward, training RM", "judge": "Avg reward, other users' RM"}
REWARD_MODELS = {"reward_model": "Reward model", "judge": "Other users' reward model", "strong": "Strong reward model"}
REMARKS = {"chosen": "chosen", "end_of_grid": "at an end of its grid"}
BASES = {"bc": "BC", "rsft": "RSFT"}
SCORED = {**JUDGES, "kl": "KL to BC, nats", "entropy": "Entropy, nats"}
LISTS = {"coverage@10": "Coverage@10", "gini@10": "Gini@10", "popularity_lift": "Popularity lift"}
CONTINUED = "bc_continued"


def base(results: Results) -> str:
    """The arm that changes are relative to: BC as in Tables 3–5, RSFT as in Table 6."""
    return "rsft" if results["preset"] == "watch_time" else "bc"


def sizes(results: Results) -> Table:
    """Table 1, the paper's row below ours where it has one."""
    data, test = results["dataset"], reached(results, "bc")
    ours = [f"{data['users']:,}", f"{data['items']:,}", f"{data['events_per_user']:.2f}"]
    rows = [[data["name"], *ours, "–" if test is None else f"{test['n']:,}"]]
    published = PUBLISHED.get(results["preset"])
    if published and published.sizes:
        rows.append([f"{published.name} in the paper", *published.sizes])
    least = results["protocol"].get("min_reward")
    kind = "" if least is None else f" (reward ≥ {least:g})"
    if headline(results) == "high_return":
        kind = " (high return)"
    return Table(["Data set", "Users", "Items", "Interactions a user", f"Test targets{kind}"], rows)


def audit(results: Results) -> Table | None:
    """Table 2: errors of the reward models and of naive predictors on the same held-out events; the least stressed."""
    found = results.get("audit")
    if not found:
        return None
    predictors = [name for name in PREDICTORS if name in found]
    rows, bold = [], set()
    for i, error in enumerate(("mse", "mae")):
        rows.append([error.upper(), *(interval(found[name][error]) for name in predictors)])
        values = [found[name][error]["value"] for name in predictors]
        bold.add((2 * i, 1 + values.index(min(values))))
        paired = [found[name].get("versus_item_mean", {}).get(error) for name in predictors]
        rows.append(
            [f"{error.upper()} − item mean's", *("–" if each is None else interval(each, "+") for each in paired)]
        )
    return Table(["Error", *(PREDICTORS[name] for name in predictors)], rows, frozenset(bold))


def methods(results: Results, group: str) -> Table | None:
    """Tables 3–6: metrics of a group with relative change, † where both intervals exclude 0; the best stressed."""
    arms = [arm for arm in ordered(results.get("arms", {})) if reached(results, arm, group)]
    if not arms:
        return None
    judges = [key for key in JUDGES if group == headline(results) and any(_score(results, arm, key) for arm in arms)]
    rows = []
    for arm in arms:
        found = results["arms"][arm]["test"][group]
        scores = [_score(results, arm, key) for key in judges]
        rows.append(
            [title(arm), *(_changed(found[metric], _versus_base(results, arm, group, metric)) for metric in TITLES)]
            + ["–" if each is None else number(each["value"]) for each in scores]
        )
    values = [[results["arms"][arm]["test"][group][metric]["value"] for arm in arms] for metric in TITLES]
    bold = frozenset((_largest(column), 1 + j) for j, column in enumerate(values))
    return Table(["Method", *TITLES.values(), *(JUDGES[key] for key in judges)], rows, bold)


def further(results: Results) -> list[str]:
    """Groups that tables are about beside the headline, without a part of the targets that is all of them."""
    first: Mapping[str, Any] = next(iter(results.get("arms", {}).values()), dict[str, Any]())
    tested: Mapping[str, Any] = first.get("test", {})
    whole = tested.get("all", {}).get("n")
    return [
        group
        for group in ("high_reward", "all", "untied")
        if group in tested and group != headline(results) and (group == "all" or tested[group]["n"] != whole)
    ]


def _largest(values: Sequence[float | None]) -> int:
    return max(range(len(values)), key=lambda i: -1.0 if (value := values[i]) is None else value)


def _score(results: Results, arm: str, judge: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = results["arms"][arm].get("avg_reward", {}).get(judge)
    return found


def _versus_base(results: Results, arm: str, group: str, metric: str) -> Mapping[str, Any] | None:
    """An arm against the base; a primary comparison with Holm's p, so that † and the claim agree."""
    if group == headline(results):
        return versus(results, arm, base(results), metric)
    found: Mapping[str, Any] | None = results["arms"][arm]["test"][group][metric].get("versus", {}).get(base(results))
    return found


def _changed(found: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> str:
    """``0.1465 (+12.3%)†``."""
    if comparison is None or comparison["ratio"] is None:
        return number(found["value"])
    mark = "†" if standing(comparison) in ("better", "worse") else ""
    return f"{number(found['value'])} ({comparison['ratio'] - 1:+.1%}){mark}"


def changes(results: Results) -> Table | None:
    """Relative change from BC (RSFT for Table 6) on the headline group, paired intervals over users."""
    rows = []
    for arm in ordered(results.get("arms", {})):
        found = reached(results, arm)
        if found and (cells := list(_relative(found, base(results)))):
            rows.append([title(arm), *cells])
    return Table(["Method", *TITLES.values()], rows) if rows else None


def _relative(found: Mapping[str, Any], against: str) -> Iterator[str]:
    for metric in TITLES:
        comparison = found[metric].get("versus", {}).get(against)
        if comparison is None:
            return
        if comparison["ratio"] is None:
            yield "–"
        elif comparison["ratio_low"] is None:
            yield f"{comparison['ratio'] - 1:+.1%}"
        else:
            low, high = comparison["ratio_low"] - 1, comparison["ratio_high"] - 1
            yield f"{comparison['ratio'] - 1:+.1%} ({low:+.1%} to {high:+.1%})"


def over_seeds(comparison: Mapping[str, Any]) -> str:
    """The interval over seeds, or that there is none."""
    if comparison.get("t_low") is None:
        return "none (one seed)" if comparison.get("seeds") == 1 else "–"
    return f"{comparison['t_low']:+.4f} to {comparison['t_high']:+.4f}"


def primary(results: Results) -> Table | None:
    """The four primary comparisons, with both intervals, the bootstrap's p and Holm's."""
    rows = []
    for each in results.get("primary", []):
        p = "–" if each["p"] is None else f"{each['p']:.4f}"
        numbers = [interval(each, "+"), over_seeds(each), p, f"{each['p_holm']:.4f}", STANDINGS[standing(each)]]
        rows.append([f"Exp-RSFT − {title(each['against'])}", *numbers])
    header = ["NDCG@10", "Difference (users)", "Over seeds", "p", "Holm's p", "Claim"]
    return Table(header, rows) if rows else None


STANDINGS = {
    "better": "better",
    "worse": "worse",
    "no difference": "not distinguishable",
    "too few users": "too few users",
}


def against(results: Results, other: str) -> Table | None:
    """NDCG@10 of every arm against another one, with both intervals and each seed's value."""
    rows = []
    for arm in ordered(results.get("arms", {})):
        found = reached(results, arm)
        comparison = versus(results, arm, other)
        if found is None or comparison is None:
            continue
        each = ", ".join(number(value) for value in found[HEADLINE_METRIC]["seeds"])
        rows.append(
            [title(arm), each, interval(comparison, "+"), over_seeds(comparison), STANDINGS[standing(comparison)]]
        )
    header = ["Method", "NDCG@10 of each seed", f"Minus {title(other)} (users)", "Over seeds", "Standing"]
    return Table(header, rows) if rows else None


def sweep(results: Results, which: str) -> Table | None:
    """Figure 3 in numbers: every metric at each temperature, with the effective sample size."""
    rows, metrics = [], list(TITLES)
    entries = [each for each in results.get("lambda", []) if which in each]
    for each in entries:
        name = f"{each['temperature']:g}{' (chosen)' if each.get('chosen') else ''}"
        ess = "–" if each.get("ess") is None else f"{each['ess']:.1%}"
        rows.append([name, ess, *(interval(each[which][metric]) for metric in metrics)])
    return Table(["λ", "ESS/n", *TITLES.values()], rows) if rows else None


def judged(results: Results) -> Table | None:
    """What both reward models say of each arm's samples, beside the true NDCG@10."""
    rows, found = [], results.get("arms", {})
    keys = [key for key in SCORED if any(each.get("avg_reward", {}).get(key) for each in found.values())]
    for arm in ordered(found):
        truth, scores = reached(results, arm), found[arm].get("avg_reward", {})
        if truth and scores:
            each = [interval(scores[key]) if scores.get(key) else "–" for key in keys]
            rows.append([title(arm), interval(truth[HEADLINE_METRIC]), *each])
    return Table(["Method", TITLES[HEADLINE_METRIC], *(SCORED[key] for key in keys)], rows) if rows else None


def costs(results: Results) -> Table | None:
    """What each arm was trained with, and on how much."""
    rows = []
    for arm in ordered(results.get("arms", {})):
        each = results["arms"][arm]
        rate, factor = each.get("learning_rate"), each.get("learning_rate_factor")
        told = f"{rate:g}" if rate is not None else "–" if factor is None else f"× {factor:g}"
        chosen = {key: value for key, value in each.get("algorithm", {}).items() if key != "name"}
        settings = ", ".join(f"{key}={_short(value)}" for key, value in chosen.items())
        failed = sum("failed" in trial for trial in each.get("tried", []))
        cost = ["–" if each.get(key) is None else f"{each[key]:,.0f}" for key in ("trials", "positions", "seconds")]
        cost[0] += f", {failed} failed" if failed else ""
        rows.append([title(arm), each.get("arm", "–"), settings or "–", told, *cost])
    for name, each in results.get("reward_models", {}).items():
        cost = [f"{each[key]:,.0f}" for key in ("positions", "seconds")]
        rows.append([REWARD_MODELS[name], "–", "–", "–", "–", *cost])
    header = ["Method", "Arm", "Settings", "Learning rate", "Trials", "Positions trained", "Worker-seconds"]
    return Table(header, rows) if rows else None


def trials(results: Results) -> Table | None:
    """What each method was tuned over: every trial, how good it was on validation, and what became of it."""
    rows = []
    for arm in ordered(results.get("arms", {})):
        for each in results["arms"][arm].get("tried", []):
            value, best = number(each.get("value")), each.get("best_epoch", "–")
            remarks = [words for key, words in REMARKS.items() if each.get(key)]
            remarks += [f"failed: {each['failed']}"] if "failed" in each else []
            rows.append([title(arm), each["name"], f"{each['epochs']}", f"{best}", value, ", ".join(remarks)])
    header = ["Method", "Trial", "Epochs", "Best", "NDCG@10, validation", ""]
    return Table(header, rows) if rows else None


def _short(value: object) -> str:
    """A setting as it is told: three digits of a number, the rest as it stands (results.json has it whole)."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def gaining(results: Results) -> tuple[list[str], list[str]]:
    """The tuned arms and the groups of targets that say who gains; both empty where they were not evaluated."""
    found = results.get("arms", {})
    arms = [arm for arm in ordered(found) if found[arm].get("arm") == "tuned" and arm not in ("bc", CONTINUED)]
    arms = [arm for arm in arms if found[arm].get("test")]
    return arms, [group for group in found[arms[0]]["test"] if group.startswith(WITHIN)] if arms else []


def gain(results: Results, arm: str, group: str) -> Mapping[str, Any] | None:
    """NDCG@10 of an arm on a group of targets against BC continued; None if not compared, or without targets."""
    found = reached(results, arm, group)
    compared = {} if found is None else found[HEADLINE_METRIC].get("versus", {}).get(CONTINUED) or {}
    return compared if compared.get("value") is not None else None


def groups(results: Results) -> Table | None:
    """Who gains: NDCG@10 of the tuned arms minus that of BC continued, by group of targets."""
    arms, names = gaining(results)
    rows = []
    for group in names:
        found = reached(results, arms[0], group) or {}
        paired = [gain(results, arm, group) for arm in arms]
        cells = ["–" if each is None else interval(each, "+") for each in paired]
        rows.append([IN_WORDS[group.removeprefix(WITHIN)], f"{found['n']:,}", *cells])
    return Table(["Targets", "n", *map(title, arms)], rows) if rows else None


def recommended(results: Results) -> Table | None:
    """What is recommended and told apart: lists, hits on disliked items, pairs of liked and disliked ones in order."""
    rows = []
    for arm in ordered(results.get("arms", {})):
        each, low = results["arms"][arm], reached(results, arm, LOW)
        if not (each.get("lists") or each.get("pairwise_accuracy") or low):
            continue
        paired = None if low is None else low["hr@10"].get("versus", {}).get(CONTINUED)
        cells = [each.get("lists", {}).get(key) for key in LISTS]
        cells += [None if low is None else low["hr@10"]]
        shown = ["–" if cell is None else interval(cell) for cell in cells]
        shown += ["–" if paired is None else interval(paired, "+")]
        pairs = each.get("pairwise_accuracy")
        rows.append([title(arm), *shown, "–" if pairs is None else interval(pairs)])
    header = ["Method", *LISTS.values(), "HR@10, low rewards", f"Minus {title(CONTINUED)}", "Pairwise accuracy"]
    return Table(header, rows) if rows else None


def shifts(results: Results) -> Table | None:
    """How the best λ moves with noise in the rewards and with fewer users."""
    rows = []
    names = {"noise": "noise of SD {:g} added", "thinned": "{:.0%} of the users kept"}
    for each in results.get("shifts", []):
        chosen = ", ".join(f"{value:g}" for value in each["chosen"].values())
        curve = ", ".join(f"{temperature:g}: {number(value)}" for temperature, value in each["grid"])
        rows.append([names[each["kind"]].format(each["amount"]), chosen, curve])
    return Table(["Training data", "Best λ of each seed", "NDCG@10 by λ, mean over seeds"], rows) if rows else None


def papers(results: Results) -> Table | None:
    """The paper's own table beside ours: its value, and its relative change from BC next to our relative change."""
    published = PUBLISHED.get(results["preset"])
    if published is None:
        return None
    rows, start = [], published.metrics.get("bc")
    for arm, values in published.metrics.items():
        cells = []
        for i, metric in enumerate(TITLES):
            theirs = values[COLUMNS.index(metric)]
            change = "" if start is None or arm == "bc" else f" ({theirs / start[i] - 1:+.1%})"
            first = f"{theirs:+.1f}%" if start is None else f"{theirs:.4f}{change}"
            cells.append(f"{first} / {_ours(results, arm, metric)}")
        rows.append([title(arm), *cells])
    return Table(["Paper / here", *TITLES.values()], rows)


def published_errors(results: Results) -> Table | None:
    """The paper's own row of Table 2, the least error stressed."""
    published = PUBLISHED.get(results["preset"])
    if published is None:
        return None
    predictors = list(published.errors["mse"])
    rows = [[error.upper(), *(number(row[name]) for name in predictors)] for error, row in published.errors.items()]
    least = [min(range(len(predictors)), key=list(row.values()).__getitem__) for row in published.errors.values()]
    bold = frozenset((i, 1 + j) for i, j in enumerate(least))
    return Table(["Error", *(PREDICTORS[name] for name in predictors)], rows, bold)


def _ours(results: Results, arm: str, metric: str) -> str:
    found = reached(results, arm)
    if found is None:
        return "not run"
    comparison = found[metric].get("versus", {}).get(base(results))
    change = "" if comparison is None or comparison["ratio"] is None else f" ({comparison['ratio'] - 1:+.1%})"
    return f"{number(found[metric]['value'])}{change}"


def verdicts(results: Results) -> Table:
    """Every claim with whose it is, its verdict and the numbers it rests on."""
    rows = []
    for each in results["verdicts"]:
        scope = f" ({each['scope']})" if each["scope"] else ""
        rows.append([each["text"], each["origin"], each["verdict"] + scope, each["evidence"]])
    return Table(["Claim", "Whose", "Verdict", "Evidence"], rows, prose=True)
