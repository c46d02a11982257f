"""The training loop: steps, checkpoints beside them, a validation after each epoch, a policy at the end.

It runs alike in Ray Train's workers and in plain spawned processes; ``Reporter`` is all it sees of where it is. Kill it
anywhere: the same task again continues from the newest whole checkpoint, in the middle of an epoch if need be, and ends
with the same bits on the same number of workers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from retilt import lease, ranks, storage
from retilt.algorithms.online import Online
from retilt.config import TrainConfig, config_hash, plain
from retilt.data.dataset import Dataset
from retilt.data.plan import Cursor, Plan
from retilt.data.stream import train_batches
from retilt.ranks import together
from retilt.training import checkpoint, parallel
from retilt.training.approximation import sampling_gap, warnings
from retilt.training.assemble import assemble_for
from retilt.training.companions import companions
from retilt.training.fit import fit_statistics
from retilt.training.judge import in_words
from retilt.training.log import MetricsLog
from retilt.training.meter import Meter
from retilt.training.numerics import WINDOW, Jump, Replicas, is_spike, shards_of
from retilt.training.progress import Progress
from retilt.training.run import claim, require_same_run
from retilt.training.saver import Draft, Saver
from retilt.training.step import StepResult, take_step
from retilt.training.validation import Validation
from retilt.types import Batch, DamagedError, Reporter, RetiltError, Statistics, Stopped, TrainingError

E = TypeVar("E", bound=RetiltError)
NOTES = 20
"""Notes that a result keeps, the last ones."""


class Run:
    """One rank's part of a training run."""

    def __init__(self, task: Mapping[str, Any], reporter: Reporter) -> None:
        """``task`` is a planned run's (run.PlannedRun.task): its configuration is complete.

        It may have a ``lease``, ``replicates`` of the validation tallies that are kept (validation.Validation), and a
        ``start`` that it shares with others (Judge.begin).
        """
        config = TrainConfig.model_validate(task["config"])
        self.config, self.task, self.reporter = config, task, reporter
        self.device = parallel.choose_device(config.device)
        self.dataset = Dataset.open(config.dataset)
        assert config.model is not None
        self.model = config.model
        self.plan = Plan.of(self.dataset, config.batch_users, config.seed)
        self.policy, self.dense = assemble_for(config, self.dataset, self.device)
        online = isinstance(config.algorithm, Online)
        self.companions = companions(config, self.dataset, self.device) if online else None
        self.validation = Validation(
            config, self.dataset, self.policy, self.device, self.companions, task.get("replicates", 0),
            task.get("start"),
        )  # fmt: skip
        self.replicas = Replicas.of(self.policy, self.dense)
        self.saver = Saver(config.checkpoint.every_seconds, config.checkpoint.every_steps)
        self.progress, self.notes = Progress(), list[str]()
        self._risen: int | None = None
        self._differed = False
        state = self._resume()
        if state is None:
            # Pages are checked whenever they are read; whole files once, not at each restart of a night.
            together(lambda: self.dataset.verify_share(ranks.rank(), ranks.world()))
        self.statistics, self.weights = self._fitted(state)
        if state is None:
            self._begin()
        self.log = together(self._claim)

    def _claim(self) -> MetricsLog | None:
        """On rank 0: make the output this run's, delete what killed attempts left there, and open the log."""
        if ranks.rank() != 0:
            return None
        self._fence()
        claim(self.task)
        self._prune(self._best())
        checkpoint.tidy(self.config.output)
        return MetricsLog(self.config.output, self.progress.step)

    def _prune(self, best: list[str]) -> None:
        self._fence()
        checkpoint.prune(self.config.output, self.config.checkpoint.keep, best)

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

        Damaged ones that are passed over are deleted: else they would count as the newest, and a whole one make room.

        Raises:
            InputError: a checkpoint of another run; DamagedError: there are checkpoints, and none is whole.
        """
        damaged: dict[str, DamagedError] = {}
        for place in ranks.broadcast_object(together(lambda: checkpoint.committed(self.config.output))):
            try:
                state = together(functools.partial(self._load, place))
            except DamagedError as problem:
                damaged[place] = problem
                self._note(f"{problem}: continues from the checkpoint before it")
                continue
            self.progress, self.saver.newest = Progress.read(state["progress"]), place
            together(lambda: self._delete(list(damaged)))
            epoch, batch = self.progress.cursor.epoch + 1, self.progress.cursor.batch
            where = f"step {self.progress.step} (epoch {epoch}, batch {batch})"
            self._note(f"continues at {where} on {ranks.world()} worker(s)")
            return state
        if damaged:
            raise _on_all_ranks(next(iter(damaged.values())))
        return None

    def _delete(self, places: list[str]) -> None:
        if ranks.rank() == 0 and places:
            self._fence()
            for place in places:
                checkpoint.delete(place)

    def _load(self, place: str) -> dict[str, Any]:
        state = checkpoint.read_state(place)
        require_same_run(state, self.task, self.dataset, place)
        checkpoint.load(place, self.policy, self.dense)
        return state

    def _fence(self) -> None:
        """Raise where another run has taken this one's output over."""
        if token := self.task.get("lease"):  # none where the loop runs by itself
            lease.require(self.config.output, token)

    def _note(self, *lines: str) -> None:
        self.notes = [*self.notes, *lines][-NOTES:]
        for line in lines if ranks.rank() == 0 else ():
            self.reporter.progress({"note": line})

    def train(self) -> dict[str, Any]:
        """Run to the last epoch and publish the policy; returns the run's result on every rank."""
        try:
            self.validation.begin(self._fence)
            while self.progress.cursor.epoch < self.config.epochs and not self._alarmed():
                try:
                    self._epoch()
                except Jump as jump:
                    self._go_back(jump)
            return self._finish()
        finally:
            # The log belongs to the saver's thread, which may still be writing it after an error.
            self.saver.close(self.log.close if self.log is not None else lambda: None)

    def _alarmed(self) -> bool:
        """Whether the run ends early because of the last epoch's alarm."""
        return self.config.stop_on_alarm and "alarm" in (self.progress.epochs or [{}])[-1]

    def _epoch(self) -> None:
        progress, waited, retries = self.progress, self.saver.waited, storage.retries()
        last = self.plan.batches(progress.cursor.epoch)
        meter = Meter(self.plan, self.config.epochs, progress)
        batches = train_batches(
            self.dataset, self.plan, progress.cursor, self.config.protocol, self.model.max_length,
            ranks.rank(), ranks.world(),
        )  # fmt: skip
        batch: Batch | None = None
        with contextlib.closing(batches):
            for batch in batches:
                self._step(batch.to(self.device), meter, last)
        retried = torch.tensor(float(storage.retries() - retries), device=self.device)
        record = {"epoch": progress.cursor.epoch + 1, **meter.whole()}
        record |= {"checkpoint_seconds": self.saver.waited - waited, "storage_retries": float(ranks.sum_(retried))}
        if self.policy.sampler is not None and batch is not None:
            record["sampling_gap"] = gap = sampling_gap(self.policy, batch.to(self.device))
            self._note(*warnings(gap, self.config))
        del batch  # and what models keep of it
        self._close_epoch(record | self.validation.measure(progress.cursor.epoch + 1, self._fence))

    def _step(self, batch: Batch, meter: Meter, last: int) -> None:
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
            self.companions,
        )
        if result.outcome == "spike":
            raise Jump(f"the loss rose to {result.loss:.4g} at step {progress.step}", spike=True)
        if result.outcome == "taken":
            progress.skipped_in_a_row = 0
            progress.losses = [*progress.losses[1 - WINDOW :], result.loss]
            meter.add(result.total, result.count, result.sums)
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
        if result.raised["due"] and progress.cursor.batch < last:  # the epoch's own comes after its validation
            self._checkpoint()

    def _is_spike(self, loss: float) -> bool:
        return self._risen is None and is_spike(loss, self.progress.losses, self.config.numerics.spike)

    def _skip(self, result: StepResult, batch: Batch) -> None:
        """Count a step that no rank has taken; end the run after too many in a row."""
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        what = f"the {result.outcome} is not finite at step {progress.step}"
        found = ranks.gather_object((result.culprit, shards_of(self.dataset, batch.example_B)))
        # Where the backbone itself has made it, the ranks share the gradient and nobody's part of the loss was it.
        blamed = [shards for culprit, shards in found if culprit] or [shards for _, shards in found]
        where = f"its examples are from {', '.join(sorted({shard for shards in blamed for shard in shards}))}"
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
        """Return to the last checkpoint.

        After that losses may jump until a checkpoint of a later step is begun: the second time it is the data's doing,
        and a run must not return to the same place again and again.
        """
        self.saver.finish()
        returns = self.progress.returns
        if jump.spike:
            self._risen = self.progress.step
        elif self._differed:
            raise _on_all_ranks(TrainingError(f"{jump}, for the second time; a machine of the workers may be faulty"))
        self._differed |= not jump.spike
        self._note(f"{jump}: back to the last checkpoint")
        if self._resume() is not None:
            self.progress.returns = returns + 1
            if self.log is not None:
                self.log.rewind(self.progress.step)
        elif jump.spike:
            self._note("there is none yet: the step is taken")
        else:
            raise _on_all_ranks(TrainingError(f"{jump}, and there is no checkpoint yet; run the same command again"))

    def _show(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.add(record)
            self.reporter.progress({**record, "epochs": self.config.epochs})

    def _close_epoch(self, record: dict[str, Any]) -> None:
        progress = self.progress
        progress.cursor = Cursor(progress.cursor.epoch + 1, 0)
        progress.epochs.append(record)
        if "alarm" in record:
            self._note(in_words(record) + (": the run ends here" if self.config.stop_on_alarm else ""))
        progress.sums, progress.recent, progress.seconds = {}, {}, 0.0
        place = checkpoint.new_place(self.config.output, progress.step)
        if (value := self.validation.score(record)) is not None:
            mine = {"epoch": record["epoch"], "value": value, "checkpoint": storage.name(place)}
            best = sorted([*progress.best, mine], key=lambda each: (-each["value"], each["epoch"]))
            progress.best = best[: self.config.checkpoint.keep_best]
        if self.log is not None:
            self.log.add({"step": progress.step, **record})
            self.reporter.progress({"step": progress.step, **record, "epochs": self.config.epochs, "epoch_done": True})
        self._checkpoint(place)
        self.reporter.report(record)

    def _checkpoint(self, place: str | None = None) -> None:
        """Begin to write a checkpoint of the run as it stands, after a look at whether the replicas still agree."""
        self._compare()
        place = place or checkpoint.new_place(self.config.output, self.progress.step)
        step, log, best = self.progress.step, self.log, self._best()
        records = 0 if log is None else len(log)

        def before() -> None:
            self._fence()
            if log is not None:
                log.flush(records)  # lines of later steps than the newest checkpoint's are dropped on resume

        def after() -> None:
            self._prune(best)
            self.reporter.progress({"committed": step})

        self.saver.begin(Draft(place, step, before, after), self.policy, self.dense, self._state())
        if self._risen is not None and step > self._risen:
            self._risen = None

    def _best(self) -> list[str]:
        return [each["checkpoint"] for each in self.progress.best]

    def _stop(self) -> None:
        self._checkpoint()
        self.saver.finish()
        step = self.progress.step
        raise _on_all_ranks(Stopped(f"stopped at step {step}, with a checkpoint; the same command continues there"))

    def _state(self) -> dict[str, Any]:
        placement = self.config.placement_for(self.dataset.items)
        return {
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "epochs": len(self.progress.epochs),
            "identity": self.task["identity"],
            "model": plain(self.model),
            "items": self.dataset.items,
            "vocabulary_sha256": self.dataset.vocabulary_sha256,
            "table": {"placement": placement, "optimizer": self.config.optimizer_for(placement)},
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
            "alarms": [in_words(record) for record in progress.epochs if "alarm" in record],
            "stopped_on_alarm": self._alarmed(),
        }
        self.saver.run(lambda: self._publish(result))
        return result

    def _publish(self, result: Mapping[str, Any]) -> None:
        output = self.config.output
        sources = {"last": self.saver.newest}
        if result["best"]:
            sources["best"] = storage.join(output, "checkpoints", result["best"]["checkpoint"])
        for name, source in sources.items():
            assert source is not None
            self._fence()
            checkpoint.publish(source, storage.join(output, "policy", name))
        self._fence()
        storage.write_json(storage.join(output, "result.json"), result)


def _on_all_ranks(problem: E) -> E:
    problem.on_all_ranks = True
    return problem


def train(task: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Train on this rank; see ``Run``."""
    return Run(task, reporter).train()
