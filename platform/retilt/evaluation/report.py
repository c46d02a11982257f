"""The evaluation report: ``metrics.json`` is the source; ``report.md``, ``metrics.png`` and the console are its views.

``policies`` holds for each policy its groups of targets (``all``, ``high_reward`` where there is a ``min_reward``,
``untied``), each with ``n``, ``users``, ``share_never_trained`` and the metrics with their intervals, and (but for the
first) ``versus_first``, the paired differences; where more was asked for, also ``further`` (gains.py). What is
undefined is null, never NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import torch

import retilt
from retilt import storage
from retilt.evaluation import gains, gains_text, markdown, plot
from retilt.evaluation.gains import Further
from retilt.evaluation.statistics import LEVEL, Tally, summary, versus

FORMAT = 1
METRICS, REPORT, PLOT = "metrics.json", "report.md", "metrics.png"
ROUGH_USERS = 30
"""A percentile interval from fewer users is somewhat too narrow; the report says so."""


@dataclass(frozen=True)
class Evaluated:
    """What was measured of a policy over all ranks, and which policy it is."""

    tally: Tally
    identity: Mapping[str, Any]
    """JSON-like; at least ``protocol`` and ``fingerprint``, also its URI, algorithm and lineage."""
    warnings: Sequence[str] = field(default=())
    further: Further = field(default_factory=Further)


def build(
    policies: Mapping[str, Evaluated],
    *,
    dataset: Mapping[str, Any],
    dataset_uri: str,
    part: str,
    min_reward: float | None,
    exclude_history: str,
    command: str,
    low_reward: float | None = None,
) -> dict[str, Any]:
    """The report as JSON-like data; the first policy is the one that the others are compared with.

    Args:
        policies: name → policy, all evaluated on the same targets with the same seed and replicates.
        dataset: the data set's manifest.
        dataset_uri: where it is.
        part: ``test`` or ``validation``.
        min_reward: smallest reward of the group ``high_reward``, or None.
        exclude_history: ``all``, ``window`` or ``none``.
        command: a shell command that repeats the evaluation.
        low_reward: largest reward of the group ``low_reward``, or None.
    """
    one, *_ = policies.values()
    first = one.tally
    protocols = {policy.identity["protocol"] for policy in policies.values()}
    return {
        "kind": "evaluation",
        "format": FORMAT,
        "dataset": dataset["name"],
        "split": dataset["split"]["name"],
        "k": dataset["split"]["k"],
        "part": part,
        "protocol": protocols.pop() if len(protocols) == 1 else "mixed",
        "min_reward": min_reward,
        "low_reward": low_reward,
        "exclude_history": exclude_history,
        "policies": {name: _policy(each, one if i else None) for i, (name, each) in enumerate(policies.items())},
        "warnings": _warnings(policies, first),
        "identity": {
            "dataset": {"uri": dataset_uri, "fingerprint": dataset["fingerprint"]},
            "policies": {name: dict(policy.identity) for name, policy in policies.items()},
            "code": code_version(),
            "bootstrap": {"level": LEVEL, "replicates": first.replicates, "seed": first.seed, "unit": "user"},
            "command": command,
        },
    }


def _policy(each: Evaluated, first: Evaluated | None) -> dict[str, Any]:
    shown = gains.own_groups(each.tally)
    found: dict[str, Any] = {group: summary(each.tally, group) for group in shown}
    further = gains.found(each.tally, each.further)
    if first is not None:
        differences = versus(each.tally, first.tally)
        found["versus_first"] = {group: differences[group] for group in shown}
        if further:
            further["versus_first"] = gains.compared(each.tally, each.further, first.tally, first.further)
    return {**found, "further": further} if further else found


def _warnings(policies: Mapping[str, Evaluated], first: Tally) -> list[str]:
    found = [f"{name}: {warning}" for name, policy in policies.items() for warning in policy.warnings]
    protocols = {name: policy.identity["protocol"] for name, policy in policies.items()}
    if len(set(protocols.values())) > 1:
        each = ", ".join(f"{name} {protocol}" for name, protocol in protocols.items())
        found.append(f"protocols differ ({each}): part of a difference may come from the amount of training data")
    for group in gains.own_groups(first):
        users = first.count("users", group)
        if users < ROUGH_USERS:
            found.append(f"the group {group} has {users} users only: its intervals are absent or too narrow")
    return found


@cache
def code_version() -> dict[str, str]:
    """Version of the package, a hash of its source (what ran, committed or not) and the version of torch."""
    digest = hashlib.sha256()
    for name, data in _sources(resources.files(retilt), ""):
        digest.update(f"{name}:{len(data)}:".encode() + data)
    return {"retilt": retilt.__version__, "source_sha256": digest.hexdigest(), "torch": str(torch.__version__)}


def _sources(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _sources(entry, f"{path}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield path + entry.name, entry.read_bytes()


def write(output: str, report: Mapping[str, Any]) -> None:
    """Write the report and its views into the folder ``output``, the source last."""
    storage.write_bytes(storage.join(output, PLOT), plot.png(report))
    storage.write_bytes(storage.join(output, REPORT), _text(report).encode())
    storage.write_json(storage.join(output, METRICS), dict(report))


def _text(report: Mapping[str, Any]) -> str:
    return markdown.render(report, PLOT, gains_text.sections(report, next(iter(report["policies"]))))
