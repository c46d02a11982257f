"""The training loop: epochs of steps, a validation after each, a checkpoint after each, a policy at the end.

It runs alike in Ray Train's workers and in plain spawned processes; ``Reporter`` is all it sees of where it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retilt import ranks, storage
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
from retilt.training.run import claim
from retilt.training.step import take_step
from retilt.types import Algorithm, Reporter


@dataclass
class Progress:
    """Where a run stands; what a checkpoint's ``state.json`` holds beside the policy's identity."""

    step: int = 0
    cursor: Cursor = field(default_factory=lambda: Cursor(0, 0))
    best: dict[str, Any] | None = None
    """Epoch, value and checkpoint of the best epoch so far, under ``select``."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """One record a finished epoch."""


class Run:
    """One rank's part of a training run."""

    def __init__(self, task: Mapping[str, Any], reporter: Reporter) -> None:
        """``task`` is a planned run's (run.PlannedRun.task): its configuration is complete."""
        config = TrainConfig.model_validate(task["config"])
        self.config, self.lineage, self.reporter = config, task["lineage"], reporter
        self.device = parallel.choose_device(config.device)
        self.dataset = Dataset.open(config.dataset)
        together(lambda: self.dataset.verify_share(ranks.rank(), ranks.world()))
        assert config.model is not None
        self.model = config.model
        self.algorithm: Algorithm = config.algorithm
        self.plan = Plan.of(self.dataset, config.batch_users, config.seed)
        self.statistics, self.weights = fit_statistics(
            config.algorithm, self.dataset, config.protocol, self.model.max_length
        )
        placement = config.placement_for(self.dataset.items)
        self.blueprint = Blueprint(
            self.model, self.dataset.items, placement, config.optimizer_for(placement),
            config.learning_rate, config.table_learning_rate, config.dropout, config.seed,
        )  # fmt: skip
        self.policy, self.dense = assemble(self.blueprint, self.dataset.active(), self.device)
        self.progress = Progress()
        self.notes = together(self._restore)
        if ranks.rank() == 0:
            claim(task)
        self.log = MetricsLog(config.output, self.progress.step)

    def _restore(self) -> list[str]:
        """Continue from the run's newest checkpoint, else start from the initial policy, else from fresh values."""
        newest = checkpoint.newest(self.config.output)
        if newest is not None:
            state = checkpoint.read_state(newest)
            self.progress = Progress(state["step"], Cursor(**state["cursor"]), state["best"], state["epochs"])
            return [
                f"continues at epoch {self.progress.cursor.epoch + 1}",
                *checkpoint.load(newest, self.policy, self.dense),
            ]
        if self.config.initial is not None:
            dense = self.dense if self.config.optimizer_state == "keep" else None
            return checkpoint.load(self.config.initial, self.policy, dense)
        return []

    def train(self) -> dict[str, Any]:
        """Run to the last epoch and publish the policy; returns the run's result on every rank."""
        while self.progress.cursor.epoch < self.config.epochs:
            self._epoch()
        return self._finish()

    def _epoch(self) -> None:
        epoch, started = self.progress.cursor.epoch, time.perf_counter()
        meter = _Meter(self.plan, self.config.epochs, self.progress.cursor)
        batches = train_batches(
            self.dataset, self.plan, self.progress.cursor, self.config.protocol, self.model.max_length,
            ranks.rank(), ranks.world(),
        )  # fmt: skip
        for batch in batches:
            result = take_step(
                self.policy, self.dense, self.algorithm, batch.to(self.device), self.statistics, self.progress.step
            )
            self.progress.step += 1
            meter.add(result.loss * result.count, result.count, result.sums)
            if meter.batches % self.config.log_every == 0:
                self._show(meter.recent(self.progress.step))
        record = {"epoch": epoch + 1, **meter.whole(), "seconds": time.perf_counter() - started}
        if self.config.protocol == "select":
            record |= self._validate()
        self._close_epoch(record)

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
        self.progress.cursor = Cursor(self.progress.cursor.epoch + 1, 0)
        self.progress.epochs.append(record)
        place = checkpoint.new_place(self.config.output, self.progress.step)
        value = record.get(f"validation/{self.config.selection_metric}")
        if value is not None and (self.progress.best is None or value > self.progress.best["value"]):
            self.progress.best = {"epoch": record["epoch"], "value": value, "checkpoint": storage.name(place)}
        checkpoint.save(place, self.policy, self.dense, self._state())
        if ranks.rank() == 0:
            self.log.add({"step": self.progress.step, **record})
            self.log.flush()
            best = self.progress.best["checkpoint"] if self.progress.best else None
            checkpoint.prune(self.config.output, self.config.checkpoint.keep, best)
            self.reporter.progress(
                {"step": self.progress.step, **record, "epochs": self.config.epochs, "epoch_done": True}
            )
        self.reporter.report(record)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "cursor": asdict(self.progress.cursor),
            "best": self.progress.best,
            "epochs": self.progress.epochs,
            "model": plain(self.model),
            "items": self.dataset.items,
            "vocabulary_sha256": self.dataset.vocabulary_sha256,
            "table": {"placement": self.blueprint.placement, "optimizer": self.blueprint.table_optimizer},
            "lineage": self.lineage,
            "statistics": asdict(self.statistics),
            "config": plain(self.config),
            "config_sha256": config_hash(self.config),
        }

    def _finish(self) -> dict[str, Any]:
        result = {
            "output": self.config.output,
            "algorithm": plain(self.config.algorithm),
            "epochs": len(self.progress.epochs),
            "steps": self.progress.step,
            "last": self.progress.epochs[-1] if self.progress.epochs else None,
            "best": self.progress.best,
            "weights": self.weights,
            "notes": self.notes,
        }
        if ranks.rank() == 0:
            newest = checkpoint.newest(self.config.output)
            assert newest is not None
            checkpoint.publish(newest, storage.join(self.config.output, "policy", "last"))
            if self.progress.best:
                source = storage.join(self.config.output, "checkpoints", self.progress.best["checkpoint"])
                checkpoint.publish(source, storage.join(self.config.output, "policy", "best"))
            storage.write_json(storage.join(self.config.output, "result.json"), result)
        ranks.barrier()
        return result


class _Meter:
    """Sums of an epoch, and since the last line of progress."""

    def __init__(self, plan: Plan, epochs: int, cursor: Cursor) -> None:
        self.plan, self.epochs, self.cursor = plan, epochs, cursor
        self.batches, self.started = 0, time.perf_counter()
        self._epoch: dict[str, float] = {}
        self._recent: dict[str, float] = {}
        self._recent_started = self.started

    def add(self, total: float, count: float, sums: Mapping[str, float]) -> None:
        """Count one step in."""
        self.batches += 1
        for into in (self._epoch, self._recent):
            for name, value in {"loss": total, "count": count, **sums}.items():
                into[name] = into.get(name, 0.0) + value

    def whole(self) -> dict[str, float]:
        """Means over the epoch's positions."""
        return _means(self._epoch) | {"positions_per_second": self._rate(self._epoch, self.started)}

    def recent(self, step: int) -> dict[str, float]:
        """Means since the last call, the pace and the seconds that are left."""
        means, rate = _means(self._recent), self._rate(self._recent, self._recent_started)
        self._recent, self._recent_started = {}, time.perf_counter()
        done = self.cursor.batch + self.batches
        left = self.plan.batches(self.cursor.epoch) - done
        left += sum(self.plan.batches(epoch) for epoch in range(self.cursor.epoch + 1, self.epochs))
        pace = (time.perf_counter() - self.started) / self.batches
        return {
            "step": step,
            "epoch": self.cursor.epoch + 1,
            **means,
            "positions_per_second": rate,
            "seconds_left": left * pace,
        }

    def _rate(self, sums: Mapping[str, float], started: float) -> float:
        return sums.get("positions", 0.0) / max(time.perf_counter() - started, 1e-9)


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """The loss per ``count``, everything else per position."""
    positions = sums.get("positions", 0.0) or 1.0
    means = {name: value / positions for name, value in sums.items() if name not in ("loss", "count", "positions")}
    return {"loss": sums.get("loss", 0.0) / (sums.get("count", 0.0) or 1.0), **means}


def train(task: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Train on this rank; see ``Run``."""
    return Run(task, reporter).train()
