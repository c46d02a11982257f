"""The report for people: conclusions first, then tables, then what would be needed to repeat or doubt them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from retilt.evaluation.metrics import TITLES
from retilt.evaluation.statistics import verdict
from retilt.evaluation.wording import conclusions, describe, groups, headline, interval, number, ratio


def render(report: Mapping[str, Any], plot: str, further: Iterable[str] = ()) -> str:
    """Markdown of a report; ``plot`` is the path of its picture, relative to where the text will lie.

    ``further`` are the lines of what was measured beside ranks (gains_text.py).
    """
    first = next(iter(report["policies"]))
    lines = [
        f"# Evaluation on {cell(report['dataset'])}, {report['part']} part",
        "",
        f"Split `{report['split']}` (k = {report['k']}), policies trained under `{report['protocol']}`. Ranks "
        f"are exact, over the whole catalogue; {_EXCLUDED[report['exclude_history']]}.",
        "",
        *(f"- {cell(sentence)}" for sentence in conclusions(report)),
        *_warnings(report["warnings"]),
        "",
        f"![Metrics with 95% intervals]({plot})",
    ]
    for group in groups(report):
        lines += ["", *_group(report, group, first)]
    lines += [*further, "", *_reading(report, first), "", *_identity(report)]
    return "\n".join(lines) + "\n"


_EXCLUDED = {
    "all": "items of the user's whole earlier history are left out of the ranking, the target never",
    "window": "earlier items inside the model's window are left out of the ranking, the target never",
    "none": "no item is left out of the ranking",
}


def cell(text: str) -> str:
    """Text that cannot end a cell or a line."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table: names to the left, figures to the right."""
    yield "| " + " | ".join(header) + " |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(map(cell, row)) + " |"


def _warnings(warnings: Sequence[str]) -> Iterator[str]:
    for warning in warnings:
        yield ""
        yield f"> **Warning:** {cell(warning)}"


def _group(report: Mapping[str, Any], group: str, first: str) -> Iterator[str]:
    policies = report["policies"]
    counts = policies[first][group]
    title = describe(group, report["min_reward"])
    yield f"## {title[0].upper()}{title[1:]}"
    yield ""
    yield f"{counts['n']:,} targets of {counts['users']:,} users."
    if not counts["n"]:
        return
    yield ""
    rows = [
        [name, *(interval(found[group][metric]) for metric in TITLES), _percent(found[group]["share_never_trained"])]
        for name, found in policies.items()
    ]
    yield from pipe_table(["policy", *TITLES.values(), "never trained"], rows)
    if len(policies) > 1:
        yield ""
        yield f"Paired difference from {cell(first)}:"
        yield ""
        rows = [
            [name, TITLES[metric], interval(found, "+"), ratio(found), verdict(found)]
            for name, policy in list(policies.items())[1:]
            for metric, found in policy["versus_first"][group].items()
        ]
        yield from pipe_table(["policy", "metric", "difference", "ratio", "verdict"], rows)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _reading(report: Mapping[str, Any], first: str) -> Iterator[str]:
    bootstrap = report["identity"]["bootstrap"]
    yield "## How to read this"
    yield ""
    yield (
        f"In brackets: {bootstrap['level']:.0%} intervals from {bootstrap['replicates']:,} Poisson bootstrap "
        "replicates that resample users, because targets of one user depend on each other. Differences are paired: "
        "each replicate counts the same users for both policies, so a difference from "
        f"{cell(first)} can be certain although the intervals of the two overlap. *better* and *worse* mean that the "
        "interval of the difference does not contain 0; with many comparisons, some will do so by chance. The "
        "intervals cover the choice of users, not the randomness of training: for that, train with several seeds."
    )
    yield ""
    yield (
        "*never trained*: share of targets whose item has no training event at the policy's cut; they count as misses. "
        "Equal scores rank the target last."
    )


def _identity(report: Mapping[str, Any]) -> Iterator[str]:
    identity = report["identity"]
    code = identity["code"]
    yield "## What was evaluated"
    yield ""
    rows = [["data set", identity["dataset"]["uri"], identity["dataset"]["fingerprint"]]]
    rows += [[name, str(each.get("uri", "–")), str(each["fingerprint"])] for name, each in identity["policies"].items()]
    rows.append(["code", f"retilt {code['retilt']}, torch {code['torch']}", code["source_sha256"]])
    yield from pipe_table(["", "place", "fingerprint"], rows)
    yield ""
    yield f"Bootstrap seed {identity['bootstrap']['seed']}. The same again:"
    yield ""
    yield "```"
    yield identity["command"]
    yield "```"
    details = {name: each for name, each in identity["policies"].items() if len(each) > 2}
    if details:
        yield ""
        yield "<details><summary>Policies in full</summary>"
        yield ""
        yield "```json"
        yield json.dumps(details, indent=1, ensure_ascii=False)
        yield "```"
        yield ""
        yield "</details>"


def console_table(report: Mapping[str, Any]) -> Table:
    """The headline group's metrics side by side, with each policy's verdict on NDCG@10; fits 80 columns."""
    group = headline(report)
    first, *_ = report["policies"]
    n = report["policies"][first][group]["n"]
    where = f"{report['dataset']}, {report['part']} part, {describe(group, report['min_reward'])} (n = {n:,})"
    table = Table(title=escape(where), title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("policy", overflow="fold")
    for metric in _BRIEF:
        table.add_column(TITLES[metric], justify="right", no_wrap=True)
    table.add_column(f"NDCG@10 − {escape(first)}", justify="right", min_width=15)
    for name, policy in report["policies"].items():
        cells = [_stacked(policy[group][metric]) for metric in _BRIEF]
        difference = policy["versus_first"][group]["ndcg@10"] if "versus_first" in policy else None
        last = "" if difference is None else f"{_stacked(difference, '+')}\n{_COLOURS[verdict(difference)]}"
        table.add_row(escape(name), *cells, last)
    return table


_BRIEF = ("ndcg@10", "hr@10", "mrr")
_COLOURS = {
    "better": "[green]better[/green]",
    "worse": "[red]worse[/red]",
    "no difference": "no difference",
    "too few users": "too few users",
}


def _stacked(found: Mapping[str, float | None], sign: str = "") -> str:
    """The value, and below it the interval."""
    if found["low"] is None or found["high"] is None:
        return number(found["value"], sign)
    return f"{number(found['value'], sign)}\n[dim]{number(found['low'], sign)}…{number(found['high'], sign)}[/dim]"
