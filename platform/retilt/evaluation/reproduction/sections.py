"""What the report says, in order: results in, a ``Document`` out. What was not run is said to be so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from retilt.evaluation import audit
from retilt.evaluation.reproduction import figures, tables
from retilt.evaluation.reproduction.published import CAVEAT, INCONSISTENCIES, PUBLISHED
from retilt.evaluation.reproduction.results import Results, headline, where
from retilt.evaluation.reproduction.rules import Outcome, difference
from retilt.evaluation.reproduction.seeds import standing
from retilt.evaluation.statistics import verdict
from retilt.evaluation.views import histogram
from retilt.evaluation.views.document import Block, Bullets, Code, Document, Section, Warned, shown, told
from retilt.evaluation.views.methods import title
from retilt.evaluation.wording import interval

NOT_RUN = "Not run."
COST = (
    "Positions and worker-seconds are of all trials and seeds together; × is a multiple of pretraining's learning "
    "rate. DPO, PPO and the tilt by reward model need the reward model's besides."
)


def document(results: Results) -> Document:
    """The whole report; ``results`` with verdicts."""
    return Document(
        f"Reproduction of arXiv:2603.10279 on {results['dataset']['name']}, preset {results['preset']}",
        [*_summary(results), *map(Warned, _warnings(results))],
        [
            Section("Verdicts on the claims", _verdicts(results)),
            Section("Data (Table 1, Figure 4)", _data(results)),
            Section("Reward models against naive predictors (Table 2)", _audit(results)),
            Section(f"Methods ({_table_name(results)})", _methods(results)),
            Section("Tuning", _tuning(results)),
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
        f"post-training{trials}. Settings and epochs were chosen by {where(results, 'high_reward')} of the validation "
        f"part; figures below are of the test part, and conclusions are about {where(results, headline(results))}."
    )
    sentences = [_sentence(each) for each in results.get("primary", [])]
    yield Bullets(sentences) if sentences else "The primary comparisons of Exp-RSFT were not run."
    yield f"Of {_counted(results, 'paper')} of the paper: {_outcomes(results, 'paper')}."
    yield f"Of {_counted(results, 'ours')} that the paper does not make: {_outcomes(results, 'ours')}."
    if len(seeds) == 1:
        yield (
            "With one seed there is no interval over seeds: nothing here is claimed beyond the policies that this seed "
            "gave. Another training run may differ by more than the intervals over users."
        )


def _counted(results: Results, origin: str) -> str:
    found = sum(each["origin"] == origin for each in results["verdicts"])
    return f"{found} claim{'' if found == 1 else 's'}"


def _outcomes(results: Results, origin: str) -> str:
    counted = Counter(each["verdict"] for each in results["verdicts"] if each["origin"] == origin)
    return ", ".join(f"{counted[each]} {each}" for each in get_args(Outcome))


def _sentence(comparison: Mapping[str, Any]) -> str:
    found = standing(comparison)
    verb = {
        "better": "is better than",
        "worse": "is worse than",
        "no difference": "cannot be told from",
        "too few users": "was tested on too few users to compare it with",
    }[found]
    if found == "no difference" and (alone := verdict(comparison)) in ("better", "worse"):
        # An interval over users without 0 beside "cannot be told from" would read as a contradiction.
        unadjusted = standing({**comparison, "p_holm": 0.0}) == alone
        where_not = "but not by Holm's p" if unadjusted else "over users alone"
        verb = f"is {alone}, {where_not} and so without a claim, than"
    told = difference(comparison, "difference in NDCG@10")
    scope = "" if comparison.get("t_low") is not None else " (one seed: of these trained policies only)"
    return f"Exp-RSFT {verb} {title(comparison['against'])}{scope}; {told}."


def _warnings(results: Results) -> list[str]:
    """Each once: the collector may have found those of the audit already."""
    audited = audit.warnings(results["audit"]) if results.get("audit") else []
    return list(dict.fromkeys([*results.get("warnings", []), *audited]))


def _verdicts(results: Results) -> list[Block]:
    rules = [f"{each['claim']} ({each['where']}): {each['rule']}." for each in results["verdicts"]]
    fixed = (
        "The rules are the code's, whatever the numbers. What has been changed about them, and about grids and "
        "budgets, after results of earlier versions had been seen is listed with dates in docs/reproduce.md. The rules:"
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
    caption = "NDCG@10 minus that of BC continued, which was tuned alike and had no rewards."
    blocks += shown("differences", caption, figures.differences(results, "bc_continued"))
    blocks += told(tables.primary(results), "The primary comparisons, stated before anything was run:")
    blocks += told(tables.changes(results), f"Relative change from {base}, with paired intervals over users:")
    for other in ("bc_continued", "bc"):
        blocks += told(tables.against(results, other), f"NDCG@10 of each seed, and against {title(other)}:")
    for group in tables.further(results):
        blocks += told(tables.methods(results, group), f"The same on {where(results, group)}:")
    return blocks


def _tuning(results: Results) -> list[Block]:
    explained = (
        "Every trial: NDCG@10 of its best epoch on validation data, of the group that settings are chosen by. Trials "
        "that ended earlier were worse than others at that length. Beyond the end of a grid there may be better ones."
    )
    return told(tables.trials(results), explained) or [NOT_RUN]


def _courses(results: Results) -> list[Block]:
    caption = (
        "Figure 2: the true metric and, of methods that learn from a reward model, the score that it gives and the KL "
        "to BC, by epoch, on validation data, without the controls. Thick: the run that validation chose; thin: trials "
        "of DPO and PPO that lost. Epoch 0 is BC."
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
        f"{title(each['arm'])}, {each['trial']}{'' if each['chosen'] else ' (not chosen)'}, seed {each['seed']}: "
        f"{each['kind']} after {_epochs(each['epochs'])}; {each['evidence']}."
        for each in results["alarms"]
    ]
    meaning = (
        "Of every trial that learned from a reward model. Hacking: its score rose while the true validation metric "
        "fell below the start's. Collapse: both fell."
    )
    return [meaning, Bullets(found) if found else "No alarm was raised."]


def _epochs(numbers: Sequence[int]) -> str:
    return f"epoch{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


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
