"""How a report's numbers are put into words and cells; shared by its views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from retilt.evaluation.statistics import verdict

GROUPS = ("high_return", "high_reward", "all", "untied")
"""In the order of presentation: the first that a report has is its headline."""


def headline(report: Mapping[str, Any]) -> str:
    """The group of targets that a report's conclusion is about."""
    return groups(report)[0]


def groups(report: Mapping[str, Any]) -> list[str]:
    """The groups of targets that a report has, most important first."""
    policy = next(iter(report["policies"].values()))
    return [group for group in GROUPS if group in policy]


def describe(group: str, min_reward: float | None) -> str:
    """Which targets a group holds."""
    return {
        "all": "every target",
        "high_return": "targets of users with a high return (mean reward of their targets)",
        "high_reward": f"targets with a reward of at least {min_reward:g}" if min_reward is not None else "",
        "untied": "untied targets (no other event of the user at the same time)",
    }[group]


def number(value: float | None, sign: str = "") -> str:
    """Four decimals, as the field prints these metrics; a dash for what is undefined."""
    return "–" if value is None else f"{value:{sign}.4f}"


def interval(found: Mapping[str, float | None], sign: str = "") -> str:
    """``0.1234 (0.1100 to 0.1300)``."""
    if found["low"] is None or found["high"] is None:
        return number(found["value"], sign)
    return f"{number(found['value'], sign)} ({number(found['low'], sign)} to {number(found['high'], sign)})"


def ratio(difference: Mapping[str, float | None]) -> str:
    """``1.08 (1.02 to 1.14)``."""
    if difference["ratio"] is None:
        return "–"
    if difference["ratio_low"] is None or difference["ratio_high"] is None:
        return f"{difference['ratio']:.2f}"
    return f"{difference['ratio']:.2f} ({difference['ratio_low']:.2f} to {difference['ratio_high']:.2f})"


def conclusions(report: Mapping[str, Any], metric: str = "ndcg@10") -> Iterator[str]:
    """One sentence for each policy but the first: the verdict on the headline group."""
    group, (first, *others) = headline(report), report["policies"]
    where = describe(group, report["min_reward"])
    for name in others:
        difference = report["policies"][name]["versus_first"][group][metric]
        found = verdict(difference)
        if found == "too few users":
            yield f"{name}: too few users to compare it with {first} on {where}."
            continue
        what = f"no difference from {first} was shown" if found == "no difference" else f"{found} than {first}"
        yield (
            f"{name}: {what} in {metric.upper()} on {where}: {interval(difference, '+')}, ratio {ratio(difference)}."
        )
