"""The keys of every job: defaults, shorthands, what goes together and what is refused with its reason."""

from __future__ import annotations

import pytest

from retilt.config import (
    EvaluateConfig,
    PrepareConfig,
    TrainConfig,
    build,
    dump_yaml,
    identity_hash,
    keys,
    load_yaml,
)
from retilt.config.train import REPLICATED_ITEMS
from retilt.types import InputError

TRAIN = {"dataset": "d", "output": "o"}
EVALUATE = {"dataset": "d", "output": "o"}


def train(**values: object) -> TrainConfig:
    return build(TrainConfig, {**TRAIN, **values})


def test_pretraining_gets_a_model_and_imitation():
    config = train()
    assert config.model is not None
    assert config.model.name == "hstu"
    assert config.algorithm.name == "bc"


def test_post_training_leaves_the_model_to_the_initial_policy():
    assert train(initial="p").model is None


def test_a_name_stands_for_a_section():
    assert train(algorithm="exp_rsft") == train(algorithm={"name": "exp_rsft"})
    assert train(model="hstu") == train(model={"name": "hstu"}) == train()


def test_a_section_without_a_name_is_the_default_one():
    model = train(model={"width": 32}).model
    assert model is not None
    assert (model.name, model.width) == ("hstu", 32)


@pytest.mark.parametrize("value", [0, 0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(value):
    with pytest.raises(InputError, match=r"algorithm\.temperature = .*greater than 0"):
        train(algorithm={"name": "exp_rsft", "temperature": value})


def test_an_unknown_algorithm_names_all_and_the_nearest():
    with pytest.raises(InputError, match=r"algorithm\.name = 'exprsft'.*bc, rsft, exp_rsft, top_rated.*'exp_rsft'\?"):
        train(algorithm="exprsft")


def test_a_key_of_another_algorithm_is_named_as_such():
    with pytest.raises(InputError, match=r"'algorithm\.temperature'.*belongs to exp_rsft, dpo and ppo, not to bc"):
        train(algorithm={"name": "bc", "temperature": 1.0})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"proposal": "in_batch", "negatives": "per_position"}, "the batch's targets are the same for all positions"),
        ({"parallel": "fsdp", "table": "replicated"}, r"parallel = 'fsdp' does not go with a replicated table"),
        ({"table": "row_wise", "table_optimizer": "adam"}, r"'adam' does not go with a row-wise table"),
        ({"dropout": 1.0}, r"dropout = 1\.0: must be at least 0 and less than 1"),
        ({"learning_rate": 0.0}, r"learning_rate = 0\.0: must be greater than 0"),
        ({"learning_rate": float("inf")}, r"learning_rate = inf"),
        ({"workers": 0}, r"workers: 0 must be a whole number of at least 1"),
        (
            {"table": "rowwise"},
            r"table = 'rowwise': must be 'auto', 'replicated' or 'row_wise'; did you mean 'row_wise'\?",
        ),
        ({"protocol": "test"}, r"protocol = 'test': must be 'select' or 'refit'"),
        ({"checkpoint": {"keep": 0}}, r"checkpoint\.keep = 0: must be at least 1"),
    ],
)
def test_refused_with_the_reason(values, words):
    with pytest.raises(InputError, match=words):
        train(**values)


def test_the_table_depends_on_the_catalogue_and_its_optimizer_on_the_table():
    config = train()
    assert config.placement_for(REPLICATED_ITEMS) == "replicated"
    assert config.placement_for(REPLICATED_ITEMS + 1) == "row_wise"
    assert train(table="row_wise").placement_for(1) == "row_wise"
    assert config.optimizer_for("replicated") == "adam"
    assert config.optimizer_for("row_wise") == "row_wise_adagrad"
    assert train(table_optimizer="row_wise_adagrad").optimizer_for("replicated") == "row_wise_adagrad"


def test_adam_is_refused_where_auto_turns_out_to_be_row_wise():
    with pytest.raises(InputError, match="row-wise"):
        train(table_optimizer="adam").optimizer_for("row_wise")


def test_the_same_run_with_other_workers_threads_storage_and_more_epochs():
    again = {"workers": 2, "threads": 1, "epochs": 60, "output": "moved", "storage": {"shared_filesystem": True}}
    assert identity_hash(train()) == identity_hash(train(**again, checkpoint={"keep": 9}, log_every=1, device="cpu"))


@pytest.mark.parametrize(
    "values",
    [{"seed": 1}, {"learning_rate": 1e-4}, {"model": {"width": 32}}, {"algorithm": "rsft"}, {"protocol": "refit"}],
)
def test_another_run(values):
    assert identity_hash(train()) != identity_hash(train(**values))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("runs/a/policy/best", ["a"]),
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["s3://x/bc/policy/best", "s3://x/exp_rsft/policy/best"], ["bc", "exp_rsft"]),
        (["x/one/bc", "y/two/bc"], ["one/bc", "two/bc"]),
        (["runs/a/policy/best", "runs/a/policy/last"], ["best", "last"]),
        ({"mine": "runs/a", "base": "runs/b"}, ["mine", "base"]),
    ],
)
def test_policies_get_short_unique_names(given, names):
    assert list(build(EvaluateConfig, {**EVALUATE, "policies": given}).policies) == names


@pytest.mark.parametrize("given", [[], {}, ["a", "a"], ["a", 3], 3])
def test_policies_that_cannot_be_told_apart_or_are_none_are_refused(given):
    with pytest.raises(InputError, match="policies"):
        build(EvaluateConfig, {**EVALUATE, "policies": given})


@pytest.mark.parametrize(
    "given", [{"k": 0}, {"split": "random"}, {"columns": {"time_unit": "m"}}, {"max_events_per_user": 2}]
)
def test_prepare_refuses(given):
    with pytest.raises(InputError):
        build(PrepareConfig, {"source": "s", "dataset": "d", **given})


@pytest.mark.parametrize(
    "config",
    [
        build(PrepareConfig, {"source": "s", "dataset": "d"}),
        train(algorithm={"name": "exp_rsft", "temperature": 3e-4}),
        train(initial="p", algorithm="top_rated"),
        build(EvaluateConfig, {**EVALUATE, "policies": {"b": "2", "a": "1"}}),
    ],
)
def test_what_is_printed_builds_the_same_configuration(config):
    assert build(type(config), load_yaml(dump_yaml(config), "here")) == config


def test_a_model_is_chosen_by_name():
    sasrec = train(model="sasrec").model
    assert sasrec is not None
    assert sasrec.name == "sasrec"
    with pytest.raises(InputError, match=r"model\.name = 'sasrek': .* hstu, sasrec; did you mean 'sasrec'\?"):
        train(model="sasrek")
    with pytest.raises(InputError, match=r"unknown key 'model\.head_width' here: it belongs to hstu, not to sasrec"):
        train(model={"name": "sasrec", "head_width": 4})
    with pytest.raises(InputError, match=r"model: width = 50 cannot be divided among heads = 4"):
        train(model={"name": "sasrec", "heads": 4})


def test_keys_say_which_algorithms_have_them():
    found = {key.name: key for key in keys(TrainConfig)}
    assert found["algorithm.name"].allowed == "'bc', 'rsft', 'exp_rsft', 'top_rated', 'dpo', 'ppo' or 'reward_model'"
    # A key that means two things is listed once for each.
    owners = [key.owners for key in keys(TrainConfig) if key.name == "algorithm.temperature"]
    assert owners == [("exp_rsft",), ("dpo", "ppo")]
    assert found["algorithm.normalize"].owners[:2] == ("rsft", "exp_rsft")
    assert found["model.width"].owners == ()
    assert found["model.head_width"].owners == ("hstu",)


@pytest.mark.parametrize("cls", [PrepareConfig, TrainConfig, EvaluateConfig])
def test_every_key_says_what_it_means(cls):
    undescribed = [key.name for key in keys(cls) if not key.field.description and not key.name.endswith(".name")]
    assert undescribed == []
