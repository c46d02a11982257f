"""What the report says, in order: results in, a ``Document`` out. What was not run is said to be so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from retilt.evaluation import audit
from retilt.evaluation.reproduction import figures, tables
from retilt.evaluation.reproduction.published import CAVEAT, INCONSISTENCIES, PUBLISHED
from retilt.evaluation.reproduction.results import Results, headline, where
from retilt.evaluation.reproduction.rules import difference
from retilt.evaluation.reproduction.seeds import standing
from retilt.evaluation.views import histogram
from retilt.evaluation.views.document import Block, Bullets, Code, Document, Section, Warned, shown, told
from retilt.evaluation.views.methods import title
from retilt.evaluation.wording import interval

NOT_RUN = "Not run."
COST = (
    "Positions and worker-seconds are of all trials and seeds together; × is a multiple of pretraining's learning rate."
)


def document(results: Results) -> Document:
    """The whole report; ``results`` with verdicts."""
    return Document(
        f"Reproduction of arXiv:2603.10279 on {results['dataset']['name']}, preset {results['preset']}",
        [*_summary(results), *map(Warned, _warnings(results))],
        [
            Section("Verdicts on the paper's claims", _verdicts(results)),
            Section("Data (Table 1, Figure 4)", _data(results)),
            Section("Reward models against naive predictors (Table 2)", _audit(results)),
            Section(f"Methods ({_table_name(results)})", _methods(results)),
            Section("Collapse over epochs (Figure 2)", _courses(results)),
            Section("Temperature (Figure 3)", _sweep(results)),
            Section("The judge's score against the truth", _judge(results)),
            Section("Who gains", _gains(results)),
            Section("Alarms", _alarms(results)),
            Section("Cost of training", _costs(results)),
            Section("What was not run", _not_run(results)),
            Section("The paper's own figures", _papers(results)),
            Section("Where the paper contradicts itself", [Bullets(INCONSISTENCIES)]),
            Section("How to read this, and how to repeat it", _reading(results)),
        ],
    )


def _table_name(results: Results) -> str:
    published = PUBLISHED.get(results["preset"])
    if published is None:
        return "in the layout of Tables 3 to 5"
    return f"in the layout of Table {published.table}"


def _summary(results: Results) -> Iterator[Block]:
    protocol, data = results["protocol"], results["dataset"]
    seeds = protocol["seeds"]
    trials = f", {protocol['trials']} validation trials a method" if protocol.get("trials") else ""
    yield (
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items, {data['events']:,} events; split "
        f"{protocol['split']} (k = {protocol['k']}). {len(results.get('arms', {}))} arms, "
        f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}, {protocol['epochs']} epochs of "
        f"post-training{trials}. Settings and epochs were chosen on validation data; figures below are of the "
        f"test part, and conclusions are about {where(results, headline(results))}."
    )
    sentences = [_sentence(each) for each in results.get("primary", [])]
    yield Bullets(sentences) if sentences else "The primary comparisons of Exp-RSFT were not run."
    counted = Counter(each["verdict"] for each in results["verdicts"])
    order = ("held", "not distinguishable", "did not hold", "not run")
    told = ", ".join(f"{counted[outcome]} {outcome}" for outcome in order)
    yield f"Of {len(results['verdicts'])} claims of the paper: {told}."
    if len(seeds) == 1:
        yield (
            "With one seed there is no interval over seeds: nothing here is claimed beyond the policies that this seed "
            "gave. Another training run may differ by more than the intervals over users."
        )


def _sentence(comparison: Mapping[str, Any]) -> str:
    verdict = {
        "better": "is better than",
        "worse": "is worse than",
        "no difference": "cannot be told from",
        "too few users": "was tested on too few users to compare it with",
    }[standing(comparison)]
    told = difference(comparison, "difference in NDCG@10")
    scope = "" if comparison.get("t_low") is not None else " (one seed: of these trained policies only)"
    return f"Exp-RSFT {verdict} {title(comparison['against'])}{scope}; {told}."


def _warnings(results: Results) -> list[str]:
    """Each once: the collector may have found those of the audit already."""
    audited = audit.warnings(results["audit"]) if results.get("audit") else []
    return list(dict.fromkeys([*results.get("warnings", []), *audited]))


def _verdicts(results: Results) -> list[Block]:
    rules = [f"{each['claim']} ({each['where']}): {each['rule']}." for each in results["verdicts"]]
    fixed = (
        "The rules were fixed before anything was run. Since then two things changed, both to the harder: "
        "noise_raises_lambda needs several seeds, and the controls of isolates_lambda with other rewards train at "
        "Exp-RSFT's effective sample size, no longer at its λ. The rules:"
    )
    return [tables.verdicts(results), fixed, Bullets(rules)]


def _data(results: Results) -> list[Block]:
    caption = "Figure 4: share of the events with each reward."
    return [tables.sizes(results), *shown("histogram", caption, histogram.png(results["dataset"].get("histogram")))]


def _audit(results: Results) -> list[Block]:
    table = tables.audit(results)
    if table is None:
        return [NOT_RUN]
    blocks: list[Block] = [
        table,
        "Errors on the same held-out events, with 95% intervals over users; below each, the paired difference from the "
        "item mean's error (negative: better than the item mean). The least error is bold.",
    ]
    if fair := results["audit"].get("strong", {}).get(f"versus_{audit.SO_FAR}"):
        mse, mae = (interval(fair[error], "+") for error in ("mse", "mae"))
        blocks.append(
            "The strong variant is told the rewards of a user's earlier events, test events included; the item mean is "
            "not. Against the user + item bias that is told the same rewards its MSE differs by "
            f"{mse} and its MAE by {mae}."
        )
    return blocks


def _methods(results: Results) -> list[Block]:
    first = tables.methods(results, headline(results))
    if first is None:
        return [NOT_RUN]
    base = tables.BASES[tables.base(results)]
    blocks: list[Block] = [
        f"On {where(results, headline(results))}; in brackets the relative change from {base}. † the difference from "
        f"{base} excludes 0, over users and, with several seeds, over seeds. The best is bold.",
        first,
    ]
    caption = "NDCG@10 minus that of BC continued, which had as much further training and no rewards."
    blocks += shown("differences", caption, figures.differences(results, "bc_continued"))
    blocks += told(tables.primary(results), "The primary comparisons, stated before anything was run:")
    blocks += told(tables.changes(results), f"Relative change from {base}, with paired intervals over users:")
    for other in ("bc_continued", "bc"):
        blocks += told(tables.against(results, other), f"NDCG@10 of each seed, and against {title(other)}:")
    for group in ("all", "untied"):
        blocks += told(tables.methods(results, group), f"The same on {where(results, group)}:")
    return blocks


def _courses(results: Results) -> list[Block]:
    caption = (
        "Figure 2: the true metric and, of methods that learn from a reward model, the score that it gives and the KL "
        "to BC, by epoch: of the run that validation chose, on validation data, without the controls. Epoch 0 is BC."
    )
    return shown("courses", caption, figures.courses(results)) or [NOT_RUN]


def _sweep(results: Results) -> list[Block]:
    caption = (
        "Figure 3: every metric by λ, at the epoch that validation chose (best) and at the last one, with 95% "
        "intervals over users."
    )
    blocks = shown("temperature", caption, figures.sweep(results))
    for which in ("best", "last"):
        blocks += told(tables.sweep(results, which), f"At the {which} epoch (ESS/n: effective sample size):")
    blocks += told(tables.shifts(results), "How the best λ moves (eq. 15 claims that it grows with the noise):")
    return blocks or [NOT_RUN]


def _judge(results: Results) -> list[Block]:
    table = tables.judged(results)
    if table is None:
        return [NOT_RUN]
    caption = "What the reward models say of each policy's samples against its NDCG@10 on held-out targets."
    return [*shown("judge", caption, figures.judge_against_truth(results)), table]


def _gains(results: Results) -> list[Block]:
    other = title(tables.CONTINUED)
    caption = f"Who gains: NDCG@10 minus that of {other}, by group of the {headline(results)} targets."
    blocks = shown("gains", caption, figures.groups(results))
    blocks += told(tables.groups(results), f"NDCG@10 minus that of {other}, 95% intervals over users:")
    blocks += told(
        tables.recommended(results),
        f"What is recommended (by the policies of seed {results['protocol']['seeds'][0]}); hits on targets of low "
        "reward, which should fall; and how often a user's held-out item of high reward is preferred to one of low "
        "reward:",
    )
    return blocks or [NOT_RUN]


def _alarms(results: Results) -> list[Block]:
    if "alarms" not in results:
        return [NOT_RUN]
    found = [
        f"{title(each['arm'])}, seed {each['seed']}, epoch {each['epoch']}: {each['kind']} ({each['evidence']})."
        for each in results["alarms"]
    ]
    meaning = (
        "Hacking: the reward model's score rose while the true validation metric fell below the start's. Collapse: "
        "both fell."
    )
    return [meaning, Bullets(found) if found else "No alarm was raised."]


def _costs(results: Results) -> list[Block]:
    table = tables.costs(results)
    return [NOT_RUN] if table is None else [table, COST]


def _not_run(results: Results) -> list[Block]:
    items = [f"{each['what']}: {each['why']}." for each in results.get("not_run", [])]
    absent = [each["claim"] for each in results["verdicts"] if each["verdict"] == "not run"]
    blocks: list[Block] = [Bullets(items)] if items else []
    if absent:
        blocks.append(f"Claims without a verdict for that reason: {', '.join(absent)}.")
    return blocks or ["Everything was run."]


def _papers(results: Results) -> list[Block]:
    table, published = tables.papers(results), PUBLISHED.get(results["preset"])
    if table is None or published is None:
        return [f"The paper has no figures for {results['dataset']['name']}."]
    blocks: list[Block] = [f"Table {published.table} of the paper ({published.name}) beside ours. {CAVEAT}", table]
    return blocks + told(tables.published_errors(results), "Its Table 2:")


def _reading(results: Results) -> list[Block]:
    bootstrap = results.get("identity", {}).get("bootstrap", {})
    count = f"{bootstrap['replicates']:,} " if bootstrap else ""
    blocks: list[Block] = [
        f"Over users: 95% intervals from {count}Poisson bootstrap replicates. Each user's metrics are first averaged "
        "over the seeds, then users are resampled, the same for every policy, so that differences are paired. Over "
        "seeds: Student's t on the difference of each seed. The first covers the choice of users, the second the "
        "randomness of training; a claim needs both to exclude 0.",
        "p is twice the smaller share of replicates on one side of 0. Holm's p adjusts it for the four primary "
        "comparisons, those that were not run counted with p = 1. All other comparisons are unadjusted: among "
        "many, some will exclude 0 by chance.",
    ]
    if code := results.get("identity", {}).get("code"):
        blocks.append(f"retilt {code['retilt']}, source {code['source_sha256']}, torch {code['torch']}.")
    if data := results["dataset"].get("fingerprint"):
        blocks.append(f"Data set {results['dataset'].get('uri', '')} {data}.")
    commands = results["protocol"].get("commands", [])
    return blocks + ([Code("\n".join(commands))] if commands else [])
