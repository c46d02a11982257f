"""How a step is done: what the jobs do, on a lane that is there already; and how a step that was done is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retilt import artifact, lease, storage
from retilt.cluster import evaluate, resources
from retilt.cluster.evaluate_share import Found, work
from retilt.cluster.lanes import Lane
from retilt.config import TrainConfig, model_of
from retilt.data import derive
from retilt.data.dataset import Dataset
from retilt.evaluation import lists, tallies
from retilt.training import audit, checkpoint, loop, planning, predicted
from retilt.training.log import logged
from retilt.training.parallel import choose_device
from retilt.training.planning import Sizes
from retilt.training.run import RESULT, at_least_begun, check_output, find_reward_model, finished, plan_run
from retilt.types import InputError
from retilt.workflows.steps import (
    Auditing,
    Derived,
    Deriving,
    Evaluating,
    Measured,
    Outcome,
    Predicting,
    Step,
    Trained,
    Training,
)

AUDIT = "audit.json"
MEASURED = "measured.json"
"""Of an evaluation, beside a folder of tallies a policy; its presence means that all is there."""
RANKS, AVG_REWARD, PAIRS = "ranks", "avg_reward", "pairs"
"""Tallies of a policy."""


def look(step: Step) -> tuple[bool, Outcome]:
    """Whether a step was done already, and its outcome.

    Raises:
        InputError: its folder holds something else.
    """
    what = step.what
    if isinstance(what, Deriving | Predicting):
        there = storage.exists(storage.join(what.output, artifact.MANIFEST))
        return there, _derived(what) if there else None
    if isinstance(what, Auditing):
        return storage.exists(storage.join(what.output, AUDIT)), None
    if isinstance(what, Evaluating):
        place = storage.join(what.config.output, MEASURED)
        measured = storage.read_json(place) if storage.exists(place) else {}
        # Of another identity: arms added later may have brought reward models, which score what is there too.
        return (True, Measured(measured["ndcg@10"])) if measured.get("of") == what.identity else (False, None)
    if not storage.exists(storage.join(what.config.output, RESULT)):
        return False, None
    planned = plan_run(what.config)
    result = finished(planned)
    # A later step may have let the run go on, and been killed: then it is not done, and no other run either.
    check_output(at_least_begun(planned) if result is None else planned)
    return (False, None) if result is None else (True, _trained(what.config, result))


def do(step: Step, lane: Lane, lanes: int) -> Outcome:
    """Do a step on one of so many ``lanes``; what the run or the evaluation raises is raised."""
    what = step.what
    if isinstance(what, Training):
        return _train(what, lane, lanes)
    if isinstance(what, Evaluating):
        return _evaluate(what, lane)
    if isinstance(what, Auditing):
        _audit(what, lane)
        return None
    if isinstance(what, Predicting):
        _predict(what, lane)
        return _derived(what)
    config = what.config
    derive.derive(config.source, what.output, config.change, config.seed, config.protocol)
    return _derived(what)


def _derived(what: Deriving | Predicting) -> Derived:
    protocol = what.config.protocol if isinstance(what, Deriving) else what.settings["protocol"]
    return Derived(Dataset.open(what.output).statistics(protocol))


def _train(what: Training, lane: Lane, lanes: int) -> Trained:
    config = what.config
    # What it has begun of a later step is ended too (see look).
    planned = at_least_begun(plan_run(config))
    check_output(planned)
    with lease.hold(planned.config.output) as held:
        check_output(planned)  # again: who held it may have begun another run
        result = finished(planned)
        if result is None:
            gpu = choose_device(config.device).type == "cuda"
            planning.require_room(
                Sizes.of(planned.config, planned.dataset),
                lambda workers: resources.room_of_worker(lanes * workers, config.threads, gpu, None),
            )
            task = {**planned.task(), "lease": held.token, "start": what.start}
            result = lane.call(loop.train, task, checkpoints=True)
    return _trained(config, result)


def _trained(config: TrainConfig, result: dict[str, Any]) -> Trained:
    """A run's epochs from its log, which is whole once there is a result."""
    records = logged(config.output)
    if len(records) < config.epochs:
        raise InputError(f"{config.output}: metrics.jsonl has {len(records)} of {config.epochs} epochs; delete the run")
    return Trained(tuple(records), result["weights"])


def _audit(what: Auditing, lane: Lane) -> None:
    data = Dataset.open(what.dataset)
    models = {name: find_reward_model(uri, data)[0] for name, uri in what.reward_models.items()}
    arguments = {**what.settings, "dataset": what.dataset, "reward_models": models, "part": "test"}
    found = lane.call(audit.work, arguments, checkpoints=False)
    storage.write_json(storage.join(what.output, AUDIT), found["audit"])


def _predict(what: Predicting, lane: Lane) -> None:
    data = Dataset.open(what.dataset)
    model, policy = find_reward_model(what.reward_model, data)[0], None
    if what.policy is not None:
        policy = checkpoint.find(storage.absolute(what.policy))
        reads, draws = (model_of(checkpoint.read_state(place), place).max_length for place in (model, policy))
        if reads != draws:
            raise InputError(
                f"reward_model: {model} reads histories of up to {reads} events, and {policy}, whose draws it scores "
                f"after the same ones, up to {draws}; use a reward model with model.max_length = {draws}"
            )
        if checkpoint.read_state(policy)["config"]["softmax"] == "sampled":
            raise InputError(
                f"{policy} was trained with a sampled softmax, so its catalogue is too large to draw from at every "
                "trained position, as V(s) needs it"
            )
    arguments = {**what.settings, "dataset": what.dataset, "output": what.output, "reward_model": model}
    lane.call(predicted.work, {**arguments, "policy": policy}, checkpoints=False)


def _evaluate(what: Evaluating, lane: Lane) -> Measured:
    (run,) = what.config.policies.values()
    if (epochs := storage.read_json(storage.join(run, RESULT))["epochs"]) != what.epochs:
        raise InputError(
            f"{run} has gone on to {epochs} epochs, and its policy after {what.epochs} is to be evaluated: delete the "
            "run, so that it is repeated"
        )
    planned = evaluate.plan(what.config)
    arguments = {**planned.arguments, "high_only": what.high_only}
    found: Mapping[str, Found] = lane.call(work, arguments, checkpoints=False)
    config = what.config
    storage.delete(config.output)  # of another identity: all of it gives way to this
    group = "all" if config.min_reward is None else "high_reward"
    values, recommended = {}, {}
    for name in what.wanted:
        ranks, further = found[name]
        for kind, tally in ((RANKS, ranks), (AVG_REWARD, further.avg_reward), (PAIRS, further.pairs)):
            if tally is not None and not what.high_only:
                tallies.write(storage.join(config.output, name, kind), tally, planned.identities[name])
        values[name] = float(ranks.means(group)["ndcg@10"] or 0.0)
        if further.lists is not None:
            recommended[name] = lists.summary(further.lists)
    measured = {"of": what.identity, "ndcg@10": values, "lists": recommended}
    storage.write_json(storage.join(config.output, MEASURED), measured)
    return Measured(values)
