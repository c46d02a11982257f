"""jobs/evaluate.py: policies on held-out events, exactly, side by side."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from retilt import storage
from retilt.cluster import session
from retilt.cluster.display import say
from retilt.cluster.evaluate_share import Found, work
from retilt.cluster.messages import Update
from retilt.cluster.workers import on_workers
from retilt.config import EvaluateConfig, model_of, plain
from retilt.data.dataset import Dataset
from retilt.data.plan import check_world
from retilt.evaluation import report
from retilt.evaluation.lineage import check_lineage, judge_warning
from retilt.evaluation.markdown import console_table
from retilt.evaluation.report import Evaluated
from retilt.training import checkpoint, parallel
from retilt.training.run import find_reward_model, require_vocabulary
from retilt.types import InputError


@dataclass(frozen=True)
class Planned:
    """A checked evaluation: what workers are given, and what identifies each policy of the report."""

    config: EvaluateConfig
    dataset: Dataset
    arguments: Mapping[str, Any]
    """Of ``evaluate_share.work``."""
    identities: Mapping[str, Mapping[str, Any]]
    warnings: Mapping[str, list[str]]
    of_judges: Sequence[str]
    """Warnings that reward models give rise to which score what policies recommend."""

    def evaluated(self, found: Mapping[str, Found]) -> dict[str, Evaluated]:
        """What ``evaluate_share.work`` found, with whose it is."""
        return {
            name: Evaluated(found[name][0], self.identities[name], self.warnings[name], found[name][1])
            for name in self.identities
        }

    def report(self, found: Mapping[str, Found], command: str) -> dict[str, Any]:
        """The report (``evaluation.report.build``) on what was found, by ``command``."""
        config = self.config
        built = report.build(
            self.evaluated(found), dataset=self.dataset.manifest, dataset_uri=config.dataset, part=config.part,
            min_reward=config.min_reward, exclude_history=config.exclude_history, command=command,
            low_reward=config.low_reward,
        )  # fmt: skip
        built["warnings"] += self.of_judges
        return built


def plan(config: EvaluateConfig) -> Planned:
    """Check an evaluation's inputs.

    Raises:
        InputError: data set, policy or reward model absent or damaged, other vocabularies, a part that a policy or the
            reward model of a tilt trained on, a reward model of shorter histories than a policy that it scores.
    """
    dataset = Dataset.open(config.dataset)
    dataset.require_files()
    check_world(dataset.lanes, config.workers)
    policies = {name: checkpoint.find(storage.absolute(uri)) for name, uri in config.policies.items()}
    reward_models = {
        name: find_reward_model(uri, dataset, f"reward_models.{name}") for name, uri in config.reward_models.items()
    }
    identities: dict[str, dict[str, Any]] = {}
    warnings: dict[str, list[str]] = {}
    for name, place in policies.items():
        identities[name], warnings[name] = _identity(place, dataset, config)
    tilted: dict[str, dict[str, str | None]] = {}
    for name, tilt in config.tilts.items():
        place = policies.get(tilt.policy) or checkpoint.find(storage.absolute(tilt.policy))
        identity, found = _identity(place, dataset, config)
        model = None
        if tilt.reward_model is not None:
            model, taught_by = reward_models.get(tilt.reward_model) or find_reward_model(
                tilt.reward_model, dataset, f"tilts.{name}.reward_model"
            )
            found = list(dict.fromkeys([*found, *_unverified(taught_by, dataset, config)]))
            identity["reward_model"] = {"uri": model, "fingerprint": checkpoint.fingerprint(model)}
        tilted[name] = {"policy": place, "reward_model": model}
        for each, temperature in tilt.temperatures(name).items():
            strength = {"strength": tilt.strength} if model is None else {}
            identities[each] = {**identity, "tilt": {"temperature": temperature, **strength}}
            warnings[each] = found
    reference = None
    if config.reference is not None:
        reference = checkpoint.find(storage.absolute(config.reference))
        _identity(reference, dataset, config)
    arguments = {
        "config": plain(config),
        "dataset": storage.absolute(config.dataset),
        "policies": policies,
        "reference": reference,
        "reward_models": {name: place for name, (place, _) in reward_models.items()},
        "tilted": tilted,
    }
    _require_windows(arguments)
    of_judges = [
        f"reward_models.{name}: {warning}"
        for name, (_, taught_by) in reward_models.items()
        if (warning := judge_warning(taught_by, dataset.manifest, config.part))
    ]
    return Planned(config, dataset, arguments, identities, warnings, of_judges)


def _require_windows(arguments: Mapping[str, Any]) -> None:
    """Raise InputError where a reward model or the reference reads fewer events than a policy that it is asked of."""
    policies, tilted = arguments["policies"], arguments["tilted"]
    # Of what a reward model tilts to, nothing is scored.
    scored = [*policies.values(), *(each["policy"] for each in tilted.values() if each["reward_model"] is None)]
    asked = [(f"reward_models.{name}", model, scored) for name, model in arguments["reward_models"].items()]
    for name, each in tilted.items():
        if each["reward_model"] is not None:
            asked.append((f"tilts.{name}.reward_model", each["reward_model"], [each["policy"]]))
    if arguments["reference"] is not None:
        asked.append(("reference", arguments["reference"], scored))
    for key, model, places in asked:
        reads = _window(model)
        for policy in dict.fromkeys(places):
            if (longest := _window(policy)) > reads:
                raise InputError(
                    f"{key}: {model} reads histories of up to {reads} events, and the policy {policy} has up to "
                    f"{longest}; use one with model.max_length of at least {longest} (a reward model has that of the "
                    "policy that it was trained from)"
                )


def _window(place: str) -> int:
    """Events that a policy's or a reward model's checkpoint reads at most."""
    return int(model_of(checkpoint.read_state(place), place).max_length)


def _identity(place: str, dataset: Dataset, config: EvaluateConfig) -> tuple[dict[str, Any], list[str]]:
    """What identifies a policy in the report, and the warnings its lineage gives rise to."""
    state = checkpoint.read_state(place)
    checkpoint.require_policy(state, place)
    require_vocabulary(state, dataset, place)
    identity = {
        "uri": place,
        "fingerprint": checkpoint.fingerprint(place),
        "protocol": state["lineage"][-1]["protocol"],
        "model": plain(model_of(state, place)),
        "algorithm": state["config"]["algorithm"],
        "epochs": state["epochs"],
        "config_sha256": state["config_sha256"],
        "lineage": state["lineage"],
    }
    return identity, _unverified(state["lineage"], dataset, config)


def _unverified(lineage: Sequence[Mapping[str, Any]], dataset: Dataset, config: EvaluateConfig) -> list[str]:
    """The warning that a lineage gives rise to, if any; InputError where it has trained on the part."""
    warning = check_lineage(lineage, dataset.manifest, config.part)
    return [warning] if warning else []


def run(config: EvaluateConfig, dry_run: bool = False) -> dict[str, Any]:
    """Evaluate every policy of ``config`` and write metrics.json, report.md and metrics.png; returns the report.

    Raises:
        InputError: what ``plan`` refuses, or an output that holds something else.
    """
    _require_shared(config)
    planned = plan(config)
    output = storage.absolute(config.output)
    _check_output(output)
    dataset = planned.dataset
    held_out = f"{config.part} part of {dataset.name}: {dataset.users:,} users, {dataset.items:,} items"
    say(f"{len(planned.identities)} policies on the {held_out}")
    say(f"exact ranks over the whole catalogue, history excluded: {config.exclude_history}; {config.workers} worker(s)")
    if dry_run:
        return {}
    with session.connect():
        _require_shared(config)
        found: Mapping[str, Found] = on_workers(
            work,
            planned.arguments,
            workers=config.workers,
            threads=config.threads,
            gpu=parallel.choose_device(config.device).type == "cuda",
            show=_show,
        )
    built = planned.report(found, shlex.join(["python", *sys.argv]))
    report.write(output, built)
    Console().print(console_table(built))
    for name in (report.REPORT, report.METRICS, report.PLOT):
        say(storage.join(output, name))
    return built


def _require_shared(config: EvaluateConfig) -> None:
    """See cluster/train.py: once before there is a connection, once with it."""
    for key, uri in _places(config):
        session.require_shared(uri, key, config.storage.shared_filesystem)


def _places(config: EvaluateConfig) -> Iterator[tuple[str, str]]:
    """Every place that a configuration names, by its key."""
    yield "dataset", config.dataset
    yield "output", config.output
    yield from ((f"policies.{name}", uri) for name, uri in config.policies.items())
    if config.reference is not None:
        yield "reference", config.reference
    yield from ((f"reward_models.{name}", uri) for name, uri in config.reward_models.items())
    for name, tilt in config.tilts.items():
        if tilt.policy not in config.policies:
            yield f"tilts.{name}.policy", tilt.policy
        if tilt.reward_model is not None and tilt.reward_model not in config.reward_models:
            yield f"tilts.{name}.reward_model", tilt.reward_model


def _check_output(output: str) -> None:
    """An evaluation may replace an earlier one, and nothing else."""
    storage.require_writable(output)
    files = {file.path for file in storage.list_files(output)}
    if files and not files <= {report.METRICS, report.REPORT, report.PLOT}:
        other = sorted(files - {report.METRICS, report.REPORT, report.PLOT})[0]
        raise InputError(f"{output} holds something else ({other}); choose another output for the evaluation")


def _show(update: Update) -> None:
    say(f"{update['policy']}: ranked {update['targets']:,} targets")
