"""The plan as a pure function of outcomes: what follows from what, and that it ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from retilt.config import TrainConfig, build, identity_hash
from retilt.config.reproduce import ARMS, ReproduceConfig
from retilt.types import InputError
from retilt.workflows.making import Maker
from retilt.workflows.plan import Plan
from retilt.workflows.presets import PRESETS
from retilt.workflows.scheduling import Schedule
from retilt.workflows.steps import (
    Auditing,
    Derived,
    Deriving,
    Evaluating,
    Failed,
    Measured,
    Outcome,
    Predicting,
    Step,
    Trained,
    Training,
)
from retilt.workflows.tuning import Point

STARS = {"levels": [[float(star), 10] for star in range(1, 6)], "reward_min": 1.0, "reward_max": 5.0}
SMALLER = {"levels": [[star / 2, 10] for star in range(1, 6)], "reward_min": 0.5, "reward_max": 2.5}
"""Of every data set that is made on seed 0: half as far apart."""
EQUAL = {"levels": [[3.0, 50]], "reward_min": 3.0, "reward_max": 3.0}


def plan(**values: Any) -> Plan:
    config = build(ReproduceConfig, {"preset": "ml-100k", "output": "/out", **values})
    return Plan(Maker(config, PRESETS[config.preset], "/data", 4.5, 2.0), STARS)


def result(step: Step) -> Outcome:
    """An outcome in which validation is best after the second epoch, and for exp_rsft at λ = .69."""
    if isinstance(step.what, Evaluating):
        return Measured({name: float(name.endswith("/0.24")) for name in step.what.wanted})
    if isinstance(step.what, Deriving | Predicting):
        return Derived(SMALLER if step.key.startswith("seed-0") else EQUAL)
    if not isinstance(step.what, Training):
        return None
    config = step.what.config
    bonus = float(getattr(config.algorithm, "temperature", 0.69) == 0.69)
    values = [1.0 + bonus - abs(epoch - 1) / 100 for epoch in range(config.epochs)]
    return Trained(tuple({"validation/ndcg@10": value} for value in values), {"ess_ratio": 0.9})


def carried_out(schedule: Schedule, failing: str = "") -> dict[str, Step]:
    """Does every step in its turn; those whose key holds ``failing`` fail."""
    found: dict[str, Step] = {}
    while steps := schedule.open():
        step = steps[0]
        found[step.key] = step
        schedule.done[step.key] = Failed("no") if failing and failing in step.key else result(step)
    return found


@pytest.mark.parametrize("seeds", [1, [3, 5]])
def test_the_plan_ends_with_every_arm_tested_on_every_seed(seeds: Any):
    schedule = Schedule(plan(seeds=seeds, pretraining_epochs=2))
    expected = len(schedule.left())
    found = carried_out(schedule)
    assert schedule.left() == []
    # Not known before: a best epoch before the last one makes a run of its own for each of three λ of the sweep and
    # seed; and BC's refit of a seed, done alone here, goes to it at once and not after the first part already.
    assert len(found) == expected + (3 - 1) * len(schedule.plan.seeds)
    for seed in schedule.plan.seeds:
        assert {key.split("/")[2] for key in found if key.startswith(f"seed-{seed}/test/")} >= {"bc", *ARMS}
    # Methods are tuned on the first seed alone; only how the best λ moves is asked of every seed.
    others = [key for key in found for seed in schedule.plan.seeds[1:] if key.startswith(f"seed-{seed}/select")]
    assert all("/select/shifts/" in key for key in others)
    assert len({key.split("/")[4].partition("@")[0] for key in others if "/noise-2/" in key}) in (0, 3)


def test_fewer_users_are_judged_on_the_validation_of_all():
    found = carried_out(Schedule(plan(seeds=2, arms=["exp_rsft"])))
    for seed in (0, 1):
        run = found[f"seed-{seed}/select/shifts/thinned-0.25/temperature-0.69-rate-1@2"].training
        judged = found[f"seed-{seed}/select/shifts/thinned-0.25/all_users/temperature-0.69-rate-1"].what
        assert isinstance(judged, Evaluating)
        assert run.dataset == f"/out/seed-{seed}/data/thinned-0.25"
        assert (judged.config.dataset, judged.config.part) == ("/data", "validation")
        assert judged.config.policies == {"exp_rsft": run.output}
        assert run.initial == "/out/seed-0/select/bc"
    assert found["seed-1/select/shifts/as_logged/temperature-0.69-rate-1@2"].training.dataset == "/data"


def test_an_evaluation_is_another_of_a_run_with_other_settings():
    """A grid may change, and the run in a folder be made again."""

    made = plan().make

    def identity(baseline: float, factor: float = 1.0) -> str:
        point = Point({"name": "rsft", "baseline": baseline}, factor)
        run = made.post("refit", 0, "rsft", point, 1, made.pretraining("refit", 0, 1))
        what = made.evaluation("seed-0/test/rsft", "test", run, "rsft").what
        assert isinstance(what, Evaluating)
        return what.identity

    assert identity(3.0) == identity(3.0)
    assert len({identity(3.0), identity(4.0), identity(3.0, 0.3)}) == 3


def test_an_evaluation_is_another_with_other_judges_and_after_other_epochs():
    """Arms that are added later bring reward models, which then score what was tested without them."""

    def identity(**values: Any) -> str:
        what = carried_out(Schedule(plan(**values)))["seed-0/test/exp_rsft"].what
        assert isinstance(what, Evaluating)
        return what.identity

    alone = identity(arms=["exp_rsft"])
    assert identity(arms=["exp_rsft", "rsft"], seeds=2, output="/elsewhere", workers=2) == alone
    assert identity(arms=["exp_rsft", "dpo"]) != alone
    assert identity(arms=["exp_rsft"], epochs=1) != alone
    assert identity(arms=["exp_rsft"], replicates=200) != alone


def test_behaviour_cloning_goes_on_under_refit_as_far_as_validation_has_come():
    """Its best epoch is the fourth of five, the seventh of ten, and stays that: no more than it is ever needed."""
    each, done = plan(seeds=[0, 3], arms=["exp_rsft"]), dict[str, Outcome]()
    values = [0.1, 0.2, 0.3, 0.5, 0.4, 0.5, 0.6, *[0.5] * 13]
    seen = []
    for epochs in (5, 10, 15, 20):
        keys = [step.key for step in each.steps(done)]
        assert keys[-1] == f"seed-0/select/bc@{epochs}" or "refit" in keys[-1]
        seen.append([key for key in keys if "refit" in key])
        done[f"seed-0/select/bc@{epochs}"] = Trained(
            tuple({"validation/ndcg@10": each} for each in values[:epochs]), {}
        )
    assert seen == [[], ["seed-0/refit/bc@4", "seed-3/refit/bc@4"], *[["seed-0/refit/bc@7", "seed-3/refit/bc@7"]] * 2]
    assert each.start("refit", 3, done).key == "seed-3/refit/bc@7"
    # A run that is found again has the epochs that it has had since.
    found = {"seed-0/select/bc@5": done["seed-0/select/bc@20"]}
    assert "seed-0/refit/bc@4" in {step.key for step in each.steps(found)}


def test_what_was_chosen_is_what_is_trained_again():
    schedule = Schedule(plan())
    found = carried_out(schedule)
    start = found["seed-0/refit/bc@2"].training
    assert (start.protocol, start.initial, start.min_reward) == ("refit", None, 4.5)
    run = found["seed-0/refit/exp_rsft@2"].training
    assert (run.algorithm.temperature, run.initial, run.learning_rate) == (0.69, "/out/seed-0/refit/bc", 1e-3)
    assert found["seed-0/refit/dpo@2"].training.reward_model == "/out/seed-0/refit/reward_model"
    assert found["seed-0/select/dpo/temperature-0.69-rate-0.3@1"].training.table_learning_rate == pytest.approx(0.015)
    assert found["seed-0/refit/exp_rsft_permuted@2"].training.dataset == "/out/seed-0/data/exp_rsft_permuted"
    for arm, policy in (("exp_rsft_predicted", None), ("exp_rsft_advantage", "/out/seed-0/refit/bc")):
        made = found[f"seed-0/data/{arm}"].what
        assert isinstance(made, Predicting)
        assert (made.reward_model, made.policy) == ("/out/seed-0/refit/reward_model", policy)
        control = found[f"seed-0/refit/{arm}@2"].training
        assert control.dataset == made.output
        # As large an effective sample size as λ = .69 leaves of rewards that are twice as far apart.
        assert control.algorithm == run.algorithm.model_copy(update={"temperature": 0.345})
    assert found["seed-0/refit/exp_rsft_permuted@2"].training.algorithm == run.algorithm
    other = carried_out(Schedule(plan(seeds=[0, 1], arms=["exp_rsft", "exp_rsft_item_mean"])))
    assert other["seed-1/refit/exp_rsft_item_mean@2"].training.algorithm == run.algorithm  # which refuses equal rewards
    trajectory = found["seed-0/refit/exp_rsft_trajectory@2"].training.algorithm
    weights = np.exp(np.random.default_rng(0).standard_normal(1_000_000) / trajectory.temperature)
    stars = np.exp(np.arange(5) / 0.69)
    assert weights.mean() ** 2 / (weights**2).mean() == pytest.approx(stars.mean() ** 2 / (stars**2).mean(), rel=0.05)
    ess = found["seed-0/refit/exp_rsft_at_rsft_ess@2"].training.algorithm.temperature
    assert 3 < ess < 5  # ESS/n = .9 on uniform stars
    tilt = found["seed-0/test/tilt_item"].what
    assert isinstance(tilt, Evaluating)
    assert tilt.config.tilts["tilt_item"].temperature == 0.24


def test_watch_time_concludes_about_returns_and_chooses_by_rewards():
    found = carried_out(Schedule(plan(preset="watch_time", arms=["tilt_item"])))
    quantiles = []
    for key in ("seed-0/select/tilt_item", "seed-0/test/tilt_item", "seed-0/test/bc"):
        what = found[key].what
        assert isinstance(what, Evaluating)
        quantiles.append(what.config.return_quantile)
    assert quantiles == [None, 0.75, 0.75]
    assert (plan(preset="watch_time").make.headline, plan().make.headline) == ("high_return", "high_reward")


def test_every_method_gets_the_same_number_of_trials():
    found = carried_out(Schedule(plan(trials=8, arms=["bc_continued", "rsft", "exp_rsft", "ppo"])))
    for arm in ("bc_continued", "rsft", "exp_rsft", "ppo"):
        assert len({key for key in found if key.startswith(f"seed-0/select/{arm}/") and key.endswith("@1")}) == 8


def test_the_sweep_tests_a_run_after_its_best_epoch_before_it_goes_on():
    found = carried_out(Schedule(plan(arms=["exp_rsft"])))
    keys = list(found)
    order = [
        f"seed-0/{key}" for key in ("refit/lambda/4@2", "test/lambda/4/best", "refit/lambda/4@3", "test/lambda/4/last")
    ]
    assert [key for key in keys if key in order] == order
    assert "seed-0/test/lambda/4/best" in found["seed-0/refit/lambda/4@3"].needs


def test_a_failed_step_takes_with_it_what_needs_it_and_nothing_else():
    schedule = Schedule(plan(arms=["exp_rsft", "dpo"]))
    found = carried_out(schedule, failing="select/reward_model")
    assert "seed-0/test/exp_rsft" in found
    assert not any("refit/dpo" in key for key in found)
    dpo = [each for key, each in schedule.done.items() if "select/dpo/" in key]
    assert len(dpo) == 6
    assert all(isinstance(each, Failed) for each in dpo)


@pytest.mark.parametrize("bc", [("@5",), ("@5", "@10")])
def test_time_left_counts_the_epochs_that_a_run_had_before_this_session(bc: tuple[str, ...]):
    def left(*seconds: float) -> float:
        schedule = Schedule(plan(arms=["exp_rsft"]))
        assert schedule.seconds_left(2) is None
        epoch = {"validation/ndcg@10": 0.5, "seconds": 30.0}
        steps = {step.key: step for step in schedule.left()}
        for key, each in zip(bc, seconds, strict=True):
            epochs = int(key.removeprefix("@"))
            schedule.end(steps[f"seed-0/select/bc{key}"], Trained((epoch,) * epochs, {}), each)
        found = schedule.seconds_left(2)
        assert found is not None
        return found

    whole = left(*[150.0 for _ in bc])
    # An earlier command trained all but the last of the epochs, so that they ended soon after this one had begun.
    assert left(*[31.0 for _ in bc]) == pytest.approx(whole)
    # Start-up and validation count too, where a step took longer than the training of its own five epochs.
    assert left(*[300.0 for _ in bc]) == pytest.approx(2 * whole)


def test_without_reward_models_policies_are_tested_all_the_same():
    found = carried_out(Schedule(plan(arms=["exp_rsft", "dpo"])), failing="refit/judge")
    test = found["seed-0/test/exp_rsft"].what
    assert isinstance(test, Evaluating)
    assert list(test.config.reward_models) == ["training"]


def test_an_arm_alone_needs_no_reward_model():
    found = carried_out(Schedule(plan(arms=["exp_rsft"])))
    assert not any("reward_model" in key or isinstance(step.what, Auditing) for key, step in found.items())


def test_time_counts_only_the_epochs_that_a_run_has_not_had():
    schedule = Schedule(plan(arms=["exp_rsft"], sweep=False))
    whole = schedule._costs(schedule.left())
    # BC twice 20, six trials of one epoch, two of them to two, one of them to three, the chosen one 3, two evaluations.
    assert whole == pytest.approx(40 + 6 + 2 * 1 + 1 + 3 + 2 * 0.5)


def test_the_presets_pretraining_is_the_run_that_one_would_start_by_hand():
    step = plan(preset="ml-1m").pretraining()
    by_hand = {"dataset": "/data", "output": "/x", "min_reward": 4.5, "epochs": 40, "table": "row_wise", "seed": 0}
    by_hand["batch_users"] = 32
    assert step.key == "seed-0/select/bc@40"
    assert identity_hash(step.training) == identity_hash(build(TrainConfig, by_hand))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seeds": 0}, "0 seeds: at least 1 is needed"),
        ({"seeds": []}, "a list of seeds holds different whole numbers"),
        ({"arms": ["exp_rsf"]}, "no arm is called 'exp_rsf'; did you mean 'exp_rsft'"),
        ({"trials": 5}, "trials = 5"),
        ({"arms": ["exp_rsft_permuted"]}, "exp_rsft_permuted is a control, .* list exp_rsft among the arms"),
        ({"arms": ["exp_rsft_at_rsft_ess", "exp_rsft"]}, "list rsft among the arms"),
        # The smallest p of four by Holm is 4 · 2/(R + 1).
        ({"replicates": 158}, "replicates = 158: must be at least 200"),
        ({"preset": "ml-10m"}, "did you mean"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        build(ReproduceConfig, {"preset": "ml-100k", "output": "/out", **values})
