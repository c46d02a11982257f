"""Steps with their complete configurations, from a preset's settings and what was chosen; costs and folders too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retilt import storage
from retilt.artifact import fingerprint
from retilt.config import EvaluateConfig, TrainConfig, build, identity_hash
from retilt.config.reproduce import ReproduceConfig
from retilt.data.derive import Derivation
from retilt.training.judge import START
from retilt.workflows.presets import Preset
from retilt.workflows.steps import Auditing, Deriving, Evaluating, Predicting, Step, Training
from retilt.workflows.tuning import Point

Protocol = Literal["select", "refit"]
BC = Point({"name": "bc"}, 1.0)
COSTS = {"dpo": 2.0, "ppo": 4.5, "reward_model": 1.5}
"""An epoch of an objective, in epochs of behaviour cloning; 1 if absent."""
EVALUATION, JUDGING, TILTING = 0.5, 1.0, 4.0
"""What an evaluation costs: ranks, each reward model's opinion of draws, a tilt by a reward model."""
PREDICTION, ADVANTAGE = 1.0, 3.0
"""What it costs to predict all training rewards, and to draw items beside each and predict theirs."""


@dataclass(frozen=True)
class Maker:
    """Makes steps. Plans are asked for often and a configuration takes a while to check, so each is made once."""

    config: ReproduceConfig
    preset: Preset
    dataset: str
    """URI of the data set."""
    high: float
    """Smallest reward of the group ``high_reward`` of targets."""
    low: float
    """Largest reward of the group that should be recommended less."""
    _made: dict[tuple[str, str, tuple[str, ...]], Step] = field(default_factory=dict, compare=False, repr=False)

    @property
    def headline(self) -> str:
        """The group of test targets that conclusions are about."""
        return "high_reward" if self.preset.return_quantile is None else "high_return"

    def place(self, *parts: str) -> str:
        """A folder below the output."""
        return storage.join(self.config.output, *parts)

    def pretraining(self, protocol: Protocol, seed: int, epochs: int) -> Step:
        """Behaviour cloning from fresh values."""
        return self._run(protocol, seed, "bc", BC, epochs, {}, ())

    def post(
        self,
        protocol: Protocol,
        seed: int,
        name: str,
        point: Point,
        epochs: int,
        start: Step,
        *,
        data: Step | None = None,
        reward_model: Step | None = None,
    ) -> Step:
        """A run from the policy of ``start``, on ``data`` in place of the data set, learning from ``reward_model``."""
        values: dict[str, Any] = {"initial": start.training.output, "model": None}
        if data is not None:
            assert isinstance(data.what, Deriving | Predicting)
            values["dataset"] = data.what.output
        if reward_model is not None:
            values["reward_model"] = reward_model.training.output
        needs = tuple(each.key for each in (start, data, reward_model) if each is not None)
        return self._run(protocol, seed, name, point, epochs, values, needs)

    def _run(
        self,
        protocol: Protocol,
        seed: int,
        name: str,
        point: Point,
        epochs: int,
        values: Mapping[str, Any],
        needs: tuple[str, ...],
    ) -> Step:
        folder = f"seed-{seed}/{protocol}/{name}"
        key = f"{folder}@{epochs}"
        identity = (key, point.name, needs)
        if (made := self._made.get(identity)) is not None:
            return made
        defaults = {name: TrainConfig.model_fields[name].default for name in ("learning_rate", "table_learning_rate")}
        config = build(TrainConfig, {
            "dataset": self.dataset, **self.preset.training,
            **{name: default * point.factor for name, default in defaults.items()},
            "algorithm": dict(point.algorithm), "protocol": protocol, "epochs": epochs, "seed": seed,
            "output": self.place(folder), "min_reward": self.high, "workers": self.config.workers,
            "threads": self.config.threads, "device": self.config.device, "hang_seconds": self.config.hang_seconds,
            "storage": self.config.storage, **values,
        })  # fmt: skip
        start = self.place(f"seed-{seed}", protocol, START) if config.judged else None
        step = Step(key, Training(config, start), needs, epochs * COSTS.get(point.algorithm["name"], 1.0))
        return self._made.setdefault(identity, step)

    def evaluation(
        self,
        key: str,
        part: Literal["validation", "test"],
        run: Step,
        name: str,
        *,
        tilt: Sequence[float] = (),
        by: Step | None = None,
        judges: Mapping[str, Step] | None = None,
        reference: Step | None = None,
        further: bool = True,
    ) -> Step:
        """The policy of ``run`` as ``name`` on a part, or what it is tilted to.

        Args:
            tilt: temperatures; one makes a policy called ``name``, several ``name``/λ each.
            by: the reward model that tilts; None: the items' mean rewards.
            judges: reward models that score the policy's draws.
            reference: the policy that KL is measured from, at the positions that are scored.
            further: all targets, also for whom it is better, and its lists; else only what a choice needs.
        """
        needs = tuple(step.key for step in (run, by, *(judges or {}).values(), reference) if step is not None)
        # What a run of that key is trained with: a grid may change, its folder be made again, and estimates guess.
        trained = [identity_hash(run.training.algorithm), run.training.learning_rate]
        known = (key, f"{list(tilt)} {trained}", needs)
        if (made := self._made.get(known)) is not None:
            return made
        temperature = tilt[0] if len(tilt) == 1 else list(tilt)
        model = None if by is None else by.training.output
        tilts = {name: {"policy": "untilted", "temperature": temperature, "reward_model": model}} if tilt else {}
        models = {each: step.training.output for each, step in (judges or {}).items()}
        config = build(EvaluateConfig, {
            "dataset": self.dataset, "policies": {"untilted" if tilt else name: run.training.output},
            "output": self.place(key), "part": part, "min_reward": self.high,
            "low_reward": self.low if further else None, "groups": further, "reward_models": models,
            "return_quantile": self.preset.return_quantile if part == "test" else None,
            "reference": None if reference is None else reference.training.output, "tilts": tilts,
            "replicates": self.config.replicates, "workers": self.config.workers, "threads": self.config.threads,
            "device": self.config.device, "storage": self.config.storage,
            "table": self.preset.training.get("table", "auto"),
        })  # fmt: skip
        wanted = tuple(config.tilts[name].temperatures(name)) if tilt else (name,)
        cost = EVALUATION + JUDGING * len(models) + (0.0 if by is None else TILTING)
        named = ("dataset", "policies", "reward_models", "tilts", *(() if reference is None else ("reference",)))
        places = dict.fromkeys(named, "")  # an output may be moved
        of = [identity_hash(config, **places), needs, trained, wanted, list(models), list(tilt), further]
        what = Evaluating(config, wanted, not further, run.training.epochs, fingerprint(of))
        return self._made.setdefault(known, Step(key, what, needs, cost if further else cost / 4))

    def audit(self, key: str, models: Mapping[str, Step]) -> Step:
        """Reward models by name on the rewards of the test part, beside baselines."""
        settings = {
            "table": self.preset.training.get("table", "auto"), "device": self.config.device, "batch_users": 128,
            "replicates": self.config.replicates, "seed": 0,
        }  # fmt: skip
        runs = {name: step.training.output for name, step in models.items()}
        what = Auditing(self.dataset, runs, self.place(key), settings)
        return Step(key, what, tuple(step.key for step in models.values()), EVALUATION + JUDGING)

    def derivation(self, key: str, change: Mapping[str, Any], seed: int, protocol: Protocol) -> Step:
        """A data set with other training rewards, or fewer users."""
        values = {"source": self.dataset, "change": dict(change), "seed": seed, "protocol": protocol}
        return Step(key, Deriving(build(Derivation, values), self.place(key)), (), EVALUATION)

    def prediction(self, key: str, reward_model: Step, policy: Step | None, seed: int, protocol: Protocol) -> Step:
        """A data set with predicted training rewards, or with r − V̂(s) where V̂ is over draws of a ``policy``."""
        settings = {
            "protocol": protocol, "seed": seed, "table": self.preset.training.get("table", "auto"),
            "device": self.config.device,
        }  # fmt: skip
        drawn_from = None if policy is None else policy.training.output
        what = Predicting(self.dataset, reward_model.training.output, drawn_from, self.place(key), settings)
        needs = tuple(step.key for step in (reward_model, policy) if step is not None)
        return Step(key, what, needs, PREDICTION if policy is None else ADVANTAGE)
