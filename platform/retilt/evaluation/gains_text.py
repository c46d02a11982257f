"""The part of a report for people that gains.py adds: tables of Avg Reward, of who gains and of what is recommended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retilt.evaluation.gains import IN_WORDS, LOW
from retilt.evaluation.lists import LIFT
from retilt.evaluation.markdown import cell, pipe_table
from retilt.evaluation.wording import interval

LISTS = {"coverage@10": "coverage@10", "gini@10": "Gini@10", LIFT: "popularity lift"}


def sections(report: Mapping[str, Any], first: str) -> Iterator[str]:
    """The lines of every section that the report has something for."""
    first = cell(first)
    policies = {name: each["further"] for name, each in report["policies"].items() if each.get("further")}
    compared = {name: each["versus_first"] for name, each in policies.items() if "versus_first" in each}
    for key, section in (("avg_reward", _judged), ("groups", _groups), ("lists", _lists)):
        if any(key in each for each in policies.values()):
            yield ""
            yield from section(report, policies, compared, first)


Found = Mapping[str, Mapping[str, Any]]


def _judged(report: Mapping[str, Any], policies: Found, compared: Found, first: str) -> Iterator[str]:
    having = {name: each["avg_reward"] for name, each in policies.items() if "avg_reward" in each}
    measures = [name for name in next(iter(having.values())) if name not in ("n", "users")]
    n = next(iter(having.values()))["n"]
    exact = "the policy's entropy" + (" and its KL from the reference" if "kl" in measures else "")
    if set(measures) <= {"entropy", "kl"}:
        yield "## Entropy and KL" if "kl" in measures else "## Entropy"
        yield ""
        yield f"At {n:,} held-out positions, over the whole catalogue, in nats: {exact}."
    else:
        yield "## Avg Reward"
        yield ""
        yield (
            f"Mean score of 10 items drawn from each policy at {n:,} held-out positions, history left out, by each "
            f"reward model; and {exact} there, in nats. A reward model errs most on items that were never logged in "
            "such a context, which is where a policy that was tuned against it goes: a higher score is no better "
            "policy."
        )
    yield ""
    rows = [[name, *(interval(each[measure]) for measure in measures)] for name, each in having.items()]
    yield from pipe_table(["policy", *measures], rows)
    yield from _differences({name: each.get("avg_reward", {}) for name, each in compared.items()}, measures, first)


def _groups(report: Mapping[str, Any], policies: Found, compared: Found, first: str) -> Iterator[str]:
    names, minus = list(next(each["groups"] for each in policies.values() if "groups" in each)), f"− {first}"
    yield "## Who gains"
    yield ""
    yield (
        "Activity: thirds of the users by their events before the held-out part. Popularity: items on which the first, "
        "the second and the last third of all training events fall. They and tied times divide the targets of the "
        "first table above."
    )
    if LOW in names:
        yield (
            f"Low rewards are targets with a reward of at most {report['low_reward']:g}, which should be recommended "
            "less often."
        )
    for group in names:
        yield ""
        yield f"{IN_WORDS[group]}, {next(iter(policies.values()))['groups'][group]['n']:,} targets:"
        yield ""
        rows = [
            [name, *_cells(each["groups"][group], compared.get(name, {}).get("groups", {}).get(group))]
            for name, each in policies.items()
        ]
        yield from pipe_table(["policy", "NDCG@10", minus, "HR@10", minus], rows)


def _cells(values: Mapping[str, Any], change: Mapping[str, Any] | None) -> Iterator[str]:
    """The metrics of a group and their differences from the first policy."""
    for measure in ("ndcg@10", "hr@10"):
        yield interval(values[measure])
        yield "" if change is None else interval(change[measure], "+")


def _lists(report: Mapping[str, Any], policies: Found, compared: Found, first: str) -> Iterator[str]:
    having = {name: each for name, each in policies.items() if "lists" in each}
    ordered = any("pairwise_accuracy" in each for each in having.values())
    yield "## What is recommended"
    yield ""
    yield (
        "Of the ten best items at each held-out position: the share of the active items that are on some list, the "
        "Gini index of how often each is (0: all alike), and how popular a list's items are beside the user's history "
        "(1: as popular)."
    )
    if ordered:
        yield (
            "Pairwise accuracy: how often an item that the user gave a high reward is preferred to one with a low "
            "reward, of the same user and after the same history; by chance .5."
        )
    yield ""

    def cells(each: Mapping[str, Any], sign: str = "") -> list[str]:
        shown = [interval(each["lists"][measure], sign) for measure in LISTS]
        return [*shown, interval(each["pairwise_accuracy"], sign)] if ordered else shown

    rows = []
    for name, each in having.items():
        rows.append([name, *cells(each)])
        if "lists" in compared.get(name, {}):
            rows.append([f"{name} − {first}", *cells(compared[name], "+")])
    yield from pipe_table(["policy", *LISTS.values(), *(["pairwise accuracy"] if ordered else [])], rows)


def _differences(compared: Found, measures: Sequence[str], first: str) -> Iterator[str]:
    rows = [[name, *(interval(each[measure], "+") for measure in measures)] for name, each in compared.items() if each]
    if rows:
        yield ""
        yield f"Paired difference from {first}:"
        yield ""
        yield from pipe_table(["policy", *measures], rows)
