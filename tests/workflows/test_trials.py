"""The trials of a λ search and who goes on."""

from __future__ import annotations

import shlex

from retilt.command_line import parse
from retilt.config import TrainConfig, build, plain
from retilt.config.tune import TuneConfig
from retilt.workflows.findings import settings_of
from retilt.workflows.trials import Maker, Trial, first_epochs, grid, survivors

LEVELS = {"levels": [[1.0, 10], [5.0, 10]], "quantiles": [1.0, 5.0]}


def score_by_temperature(trial: Trial) -> float:
    return -abs((trial.temperature or 9.0) - 1.0) - trial.learning_rate


def test_bc_and_top_rated_are_always_in_the_grid() -> None:
    trials = grid([0.5, 1.0], [0.1, 0.2])
    assert len(trials) == (2 + 3) * 2
    assert {each.method for each in trials} == {"bc", "exp_rsft", "top_rated", "rsft"}
    assert len({each.name for each in trials}) == len(trials)


def test_rungs_cost_less_than_three_runs() -> None:
    for lambdas, epochs in ((8, 10), (8, 9), (8, 30), (6, 12)):
        first, second = first_epochs("halving", lambdas, epochs)
        compared = -(-lambdas // 3) + 2
        cost = (lambdas + 3) * first + compared * (second - first) + (epochs - second)
        assert cost <= 3 * epochs


def test_short_searches_have_fewer_rungs() -> None:
    assert first_epochs("halving", 8, 1) == [1]
    assert first_epochs("halving", 8, 2) == [1]
    assert first_epochs("halving", 1, 9) == [3]
    assert first_epochs("grid", 8, 1) == [1]


def test_a_third_of_the_temperatures_goes_on_with_what_they_are_compared_with() -> None:
    trials = grid([0.1, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0], [0.1])
    kept = survivors(trials, score_by_temperature)
    assert [each.temperature for each in kept if each.method == "exp_rsft"] == [0.5, 1.0, 1.5]
    assert [each.method for each in kept if each.method != "exp_rsft"] == ["bc", "top_rated"]


def test_of_bc_and_top_rated_the_better_learning_rate_goes_on() -> None:
    kept = survivors(grid([1.0], [0.2, 0.1]), score_by_temperature)
    assert {each.method: each.learning_rate for each in kept} == {"bc": 0.1, "exp_rsft": 0.1, "top_rated": 0.1}


def test_a_trial_that_failed_goes_nowhere() -> None:
    trials = grid([0.5, 1.0], [0.1])
    kept = survivors(trials, lambda each: float("-inf") if each.temperature == 1.0 else 0.0)
    assert 1.0 not in [each.temperature for each in kept]
    assert survivors(trials, lambda _: float("-inf")) == []


def test_a_run_keeps_the_ratio_of_the_learning_rates() -> None:
    config = build(TuneConfig, {"dataset": "d", "initial": "i", "output": "/o", "learning_rate": 1e-3, "seed": 3})
    make = Maker(config, LEVELS, 4.0)
    run = make.training(Trial("exp_rsft", 0.5, 3e-4), 7)
    assert (run.learning_rate, run.table_learning_rate) == (3e-4, 0.05 * 0.3)
    assert (run.epochs, run.min_reward, run.seed, run.initial) == (7, 4.0, 3, "i")
    assert run.algorithm.name == "exp_rsft"
    assert run.output == "/o/trials/lambda-0.5-rate-0.0003"


def test_divergence_is_measured_only_of_trials_that_the_choice_is_made_from() -> None:
    config = build(TuneConfig, {"dataset": "d", "initial": "i", "output": "/o"})
    make = Maker(config, LEVELS, 4.0, exact_from=3)
    trial = Trial("exp_rsft", 0.5, 1e-3)
    assert [make.task(trial, epochs)["exact"] for epochs in (1, 3, 10)] == [False, True, True]


def test_the_command_that_is_printed_repeats_the_chosen_run() -> None:
    values = {
        "dataset": "d", "initial": "i", "output": "/o", "batch_users": 12, "seed": 3, "dropout": 0.1,
        "algorithm": {"name": "exp_rsft", "normalize": "batch"}, "numerics": {"max_skipped": 1},
        "table": "row_wise", "precision": "bf16", "logq": False, "parallel": "fsdp", "memory_per_worker": 2e9,
    }  # fmt: skip
    run = Maker(build(TuneConfig, values), LEVELS, 4.0).training(Trial("exp_rsft", 0.12345678, 1e-5), 7)
    argv = ["dataset=d", "initial=i", "output=/r", "protocol=refit", "algorithm=exp_rsft", "epochs=7"]
    printed = shlex.split(" ".join(settings_of(run)))
    again = parse(TrainConfig, [*argv, *printed], prog="", description="").config
    own = {"output": "/r", "protocol": "refit", "min_reward": again.min_reward, "threads": again.threads}
    assert plain(again) == plain(run.model_copy(update=own))


def test_baselines_follow_the_rewards() -> None:
    config = build(TuneConfig, {"dataset": "d", "initial": "i", "output": "/o"})
    levels, continuous = Maker(config, LEVELS, 4.0), Maker(config, {"quantiles": [-2.0, 0.0, 3.0]}, 1.0)
    top, rsft = Trial("top_rated", None, 1e-3), Trial("rsft", None, 1e-3)
    algorithms = [plain(make.training(each, 1).algorithm) for each in (top, rsft) for make in (levels, continuous)]
    assert [each.get("quantile") for each in algorithms[:2]] == [None, 0.9]
    assert [each.get("baseline") for each in algorithms[2:]] == [0.0, -2.0]
