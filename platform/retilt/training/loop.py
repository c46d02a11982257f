"""The training loop: steps, checkpoints beside them, a validation after each epoch, a policy at the end.

It runs alike in Ray Train's workers and in plain spawned processes; ``Reporter`` is all it sees of where it is. Kill it
anywhere: the same task again continues from the newest whole checkpoint, in the middle of an epoch if need be, and ends
with the same bits on the same number of workers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from retilt import lease, ranks, storage
from retilt.config import TrainConfig, config_hash, plain
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.stream import evaluation_batches, train_batches
from retilt.evaluation.ranking import tally
from retilt.ranks import together
from retilt.training import checkpoint, parallel
from retilt.training.assemble import Blueprint, assemble
from retilt.training.fit import fit_statistics
from retilt.training.log import MetricsLog
from retilt.training.meter import Meter
from retilt.training.numerics import WINDOW, Jump, Replicas, is_spike, shards_of
from retilt.training.run import claim, require_same_run
from retilt.training.saver import Saver
from retilt.training.step import StepResult, take_step
from retilt.types import Batch, DamagedError, Reporter, Statistics, Stopped, TrainingError


@dataclass
class Progress:
    """Where a run stands; with the parameters all that it needs to go on as if it had never stopped."""

    step: int = 0
    cursor: Cursor = field(default_factory=lambda: Cursor(0, 0))
    best: list[dict[str, Any]] = field(default_factory=list)
    """Epoch, value and checkpoint of the best epochs so far, the best first, under ``select``."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """One record a finished epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch under way (meter.py)."""
    seconds: float = 0.0
    """That the epoch under way has taken."""
    skipped: int = 0
    """Steps that were not taken because a loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    """The last ones, by which a spike is known."""
    returns: int = 0
    """Times that the run went back to a checkpoint of its own accord."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Progress:
        """From ``asdict``'s form."""
        return cls(**{**values, "cursor": Cursor(**values["cursor"])})


class Run:
    """One rank's part of a training run."""

    def __init__(self, task: Mapping[str, Any], reporter: Reporter) -> None:
        """``task`` is a planned run's (run.PlannedRun.task): its configuration is complete."""
        config = TrainConfig.model_validate(task["config"])
        self.config, self.task, self.reporter = config, task, reporter
        self.device = parallel.choose_device(config.device)
        self.dataset = Dataset.open(config.dataset)
        together(lambda: self.dataset.verify_share(ranks.rank(), ranks.world()))
        assert config.model is not None
        self.model = config.model
        self.plan = Plan.of(self.dataset, config.batch_users, config.seed)
        placement = config.placement_for(self.dataset.items)
        self.blueprint = Blueprint(
            self.model, self.dataset.items, placement, config.optimizer_for(placement),
            config.learning_rate, config.table_learning_rate, config.dropout, config.seed,
        )  # fmt: skip
        self.policy, self.dense = assemble(self.blueprint, self.dataset.active(), self.device)
        self.replicas = Replicas.of(self.policy, self.dense)
        self.saver = Saver(config.checkpoint.every_seconds, config.checkpoint.every_steps, self._fence)
        self.progress, self.notes = Progress(), list[str]()
        self._accepted, self._differed = -1, False
        state = self._resume()
        self.statistics, self.weights = self._fitted(state)
        if state is None:
            self._begin()
        if ranks.rank() == 0:
            claim(task)
            checkpoint.prune(config.output, config.checkpoint.keep, self._best())
        self.log = MetricsLog(config.output, self.progress.step)

    def _fitted(self, state: Mapping[str, Any] | None) -> tuple[Statistics, dict[str, Any]]:
        """What was fitted to the training events; a resumed run keeps the very numbers that it began with."""
        if state is not None:
            return Statistics(**state["statistics"]), state["weights"]
        return fit_statistics(self.config.algorithm, self.dataset, self.config.protocol, self.model.max_length)

    def _begin(self) -> None:
        """Start from the initial policy, else from fresh values."""
        if (initial := self.config.initial) is not None:
            dense = self.dense if self.config.optimizer_state == "keep" else None
            self._note(*together(lambda: checkpoint.load(initial, self.policy, dense)))

    def _resume(self) -> dict[str, Any] | None:
        """Continue from the newest whole checkpoint of this run and return its state, if there is one. Collective.

        Raises:
            InputError: a checkpoint of another run; DamagedError: there are checkpoints, and none is whole.
        """
        damaged: DamagedError | None = None
        for place in ranks.broadcast_object(together(lambda: checkpoint.committed(self.config.output))):
            try:
                state = together(functools.partial(self._load, place))
            except DamagedError as problem:
                damaged = problem
                self._note(f"{problem}: continues from the checkpoint before it")
                continue
            self.progress = Progress.read(state["progress"])
            epoch, batch = self.progress.cursor.epoch + 1, self.progress.cursor.batch
            where = f"step {self.progress.step} (epoch {epoch}, batch {batch})"
            self._note(f"continues at {where} on {ranks.world()} worker(s)")
            return state
        if damaged:
            raise damaged
        return None

    def _load(self, place: str) -> dict[str, Any]:
        state = checkpoint.read_state(place)
        require_same_run(state, self.task, self.dataset, place)
        checkpoint.load(place, self.policy, self.dense)
        return state

    def _fence(self) -> None:
        if token := self.task.get("lease"):  # none where the loop runs by itself
            lease.require(self.config.output, token)

    def _note(self, *lines: str) -> None:
        self.notes += lines
        for line in lines if ranks.rank() == 0 else ():
            self.reporter.progress({"note": line})

    def train(self) -> dict[str, Any]:
        """Run to the last epoch and publish the policy; returns the run's result on every rank."""
        while self.progress.cursor.epoch < self.config.epochs:
            try:
                self._epoch()
            except Jump as jump:
                self._go_back(jump)
        return self._finish()

    def _epoch(self) -> None:
        progress = self.progress
        meter = Meter(self.plan, self.config.epochs, progress.cursor, progress.sums, progress.seconds)
        batches = train_batches(
            self.dataset, self.plan, progress.cursor, self.config.protocol, self.model.max_length,
            ranks.rank(), ranks.world(),
        )  # fmt: skip
        with contextlib.closing(batches):
            for batch in batches:
                self._step(batch.to(self.device), meter)
        record = {"epoch": progress.cursor.epoch + 1, **meter.whole(), "checkpoint_seconds": self.saver.waited}
        record["storage_retries"] = float(ranks.sum_(torch.tensor(float(storage.retries()), device=self.device)))
        if self.config.protocol == "select":
            record |= self._validate()
        self._close_epoch(record)

    def _step(self, batch: Batch, meter: Meter) -> None:
        """One step and what follows from it: a skip, a line in the log, a comparison, a checkpoint, an end."""
        progress = self.progress
        signals = {
            "stop": self.reporter.stop_requested(),
            "written": self.saver.written,
            "due": self.saver.due(progress.step + 1),
        }
        result = take_step(
            self.policy,
            self.dense,
            self.config.algorithm,
            batch,
            self.statistics,
            progress.step,
            signals,
            self._is_spike,
        )
        if result.outcome == "spike":
            raise Jump(f"the loss rose to {result.loss:.4g} at step {progress.step}", spike=True)
        if result.outcome == "taken":
            progress.skipped_in_a_row = 0
            progress.losses = [*progress.losses[1 - WINDOW :], result.loss]
            meter.add(result.loss * result.count, result.count, result.sums)
        else:
            self._skip(result, batch)
        progress.step += 1
        progress.cursor = Cursor(progress.cursor.epoch, progress.cursor.batch + 1)
        progress.seconds = meter.seconds
        if progress.step % self.config.log_every == 0 and (recent := meter.recent()):
            self._show({"step": progress.step, "epoch": progress.cursor.epoch + 1, **recent})
        if progress.step % self.config.numerics.compare_every == 0:
            self._compare()
        if result.raised["written"] == ranks.world():
            self.saver.commit()
        if result.raised["stop"]:
            self._stop()
        if result.raised["due"]:
            self._checkpoint()

    def _is_spike(self, loss: float) -> bool:
        accepted = self.progress.step == self._accepted
        return not accepted and is_spike(loss, self.progress.losses, self.config.numerics.spike)

    def _skip(self, result: StepResult, batch: Batch) -> None:
        """Count a step that no rank has taken; end the run after too many in a row."""
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        what = f"the {result.outcome} is not finite at step {progress.step}"
        found = ranks.gather_object(shards_of(self.dataset, batch.example_B) if result.culprit else [])
        where = f"its examples are from {', '.join(sorted({shard for part in found for shard in part}))}"
        if progress.skipped_in_a_row > self.config.numerics.max_skipped:
            raise _on_all_ranks(
                TrainingError(
                    f"{what}, like {progress.skipped_in_a_row - 1} steps before it; {where}; lower the learning rate "
                    "or look at the rewards there"
                )
            )
        self._note(f"{what}: skipped on all workers; {where}")

    def _compare(self) -> None:
        if (difference := self.replicas.differing()) is not None:
            raise Jump(f"{difference} at step {self.progress.step}: a bit may have flipped in memory", spike=False)

    def _go_back(self, jump: Jump) -> None:
        """Return to the last checkpoint. A loss that jumps again at the same step is accepted: the data are so."""
        self.saver.finish()
        step, returns = self.progress.step, self.progress.returns
        if jump.spike:
            self._accepted = step
        elif self._differed:
            raise _on_all_ranks(TrainingError(f"{jump}, for the second time; a machine of the workers may be faulty"))
        self._differed |= not jump.spike
        self._note(f"{jump}: back to the last checkpoint")
        if self._resume() is not None:
            self.progress.returns = returns + 1
            self.log.rewind(self.progress.step)
        elif jump.spike:
            self._note("there is none yet: the step is taken")
        else:
            raise _on_all_ranks(TrainingError(f"{jump}, and there is no checkpoint yet; run the same command again"))

    def _show(self, record: Mapping[str, Any]) -> None:
        if ranks.rank() == 0:
            self.log.add(record)
            self.reporter.progress({**record, "epochs": self.config.epochs})

    def _validate(self) -> dict[str, float]:
        """Validation metrics of the group that chooses the best epoch; equal on all ranks."""
        batches = evaluation_batches(
            self.dataset,
            "validation",
            self.model.max_length,
            "all",
            self.config.batch_users,
            ranks.rank(),
            ranks.world(),
        )
        found = tally(
            self.policy.eval(), batches, train_counts=self.dataset.train_counts("select"),
            min_reward=self.config.min_reward, replicates=0, seed=0, device=self.device,
        ).sum_over_ranks()  # fmt: skip
        group = "all" if self.config.min_reward is None else "high_reward"
        return {f"validation/{name}": value for name, value in found.means(group).items() if value is not None}

    def _close_epoch(self, record: dict[str, Any]) -> None:
        progress = self.progress
        progress.cursor = Cursor(progress.cursor.epoch + 1, 0)
        progress.epochs.append(record)
        progress.sums, progress.seconds = {}, 0.0
        place = checkpoint.new_place(self.config.output, progress.step)
        value = record.get(f"validation/{self.config.selection_metric}")
        if value is not None:
            mine = {"epoch": record["epoch"], "value": value, "checkpoint": storage.name(place)}
            best = sorted([*progress.best, mine], key=lambda each: (-each["value"], each["epoch"]))
            progress.best = best[: self.config.checkpoint.keep_best]
        if ranks.rank() == 0:
            self.log.add({"step": progress.step, **record})
            self.reporter.progress({"step": progress.step, **record, "epochs": self.config.epochs, "epoch_done": True})
        self._checkpoint(place)
        self.reporter.report(record)

    def _checkpoint(self, place: str | None = None) -> None:
        """Begin to write a checkpoint of the run as it stands, after a look at whether the replicas still agree."""
        self._compare()
        place = place or checkpoint.new_place(self.config.output, self.progress.step)
        step, records, best = self.progress.step, len(self.log.records), self._best()

        def after() -> None:
            self.log.flush(records)
            checkpoint.prune(self.config.output, self.config.checkpoint.keep, best, before=step)
            self.reporter.progress({"committed": step})

        self.saver.begin(place, self.policy, self.dense, self._state(), after)

    def _best(self) -> list[str]:
        return [each["checkpoint"] for each in self.progress.best]

    def _stop(self) -> None:
        self._checkpoint()
        self.saver.finish()
        step = self.progress.step
        raise _on_all_ranks(Stopped(f"stopped at step {step}, with a checkpoint; the same command continues there"))

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "epochs": len(self.progress.epochs),
            "identity": self.task["identity"],
            "model": plain(self.model),
            "items": self.dataset.items,
            "vocabulary_sha256": self.dataset.vocabulary_sha256,
            "table": {"placement": self.blueprint.placement, "optimizer": self.blueprint.table_optimizer},
            "lineage": self.task["lineage"],
            "statistics": asdict(self.statistics),
            "weights": self.weights,
            "config": plain(self.config),
            "config_sha256": config_hash(self.config),
        }

    def _finish(self) -> dict[str, Any]:
        self.saver.finish()
        progress = self.progress
        result = {
            "output": self.config.output,
            "algorithm": plain(self.config.algorithm),
            "epochs": len(progress.epochs),
            "steps": progress.step,
            "last": progress.epochs[-1] if progress.epochs else None,
            "best": progress.best[0] if progress.best else None,
            "weights": self.weights,
            "skipped": progress.skipped,
            "returns": progress.returns,
            "notes": self.notes,
        }
        together(lambda: self._publish(result) if ranks.rank() == 0 else None)
        return result

    def _publish(self, result: Mapping[str, Any]) -> None:
        output = self.config.output
        checkpoint.publish(checkpoint.committed(output)[0], storage.join(output, "policy", "last"))
        if result["best"]:
            source = storage.join(output, "checkpoints", result["best"]["checkpoint"])
            checkpoint.publish(source, storage.join(output, "policy", "best"))
        storage.write_json(storage.join(output, "result.json"), result)


def _on_all_ranks(problem: TrainingError | Stopped) -> TrainingError | Stopped:
    problem.on_all_ranks = True
    return problem


def train(task: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Train on this rank; see ``Run``."""
    return Run(task, reporter).train()
