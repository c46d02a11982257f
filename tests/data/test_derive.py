"""Derived data sets: what changes and what does not, each change worked out anew, and whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.small_dataset import Event, sequences, write

from retilt import storage
from retilt.data import draws
from retilt.data.changes import ItemMean, Noisy, Permuted, Replaced, Thinned
from retilt.data.dataset import Dataset
from retilt.data.derive import derive
from retilt.data.split import bounds
from retilt.data.statistics import Rewards
from retilt.evaluation.lineage import check_lineage
from retilt.types import InputError

ITEMS, K = 30, 2
USERS = sequences(90, ITEMS, seed=3)
SHARDS = [[20, 25], [5, 10], [30]]


def written(place: Path, users: list[list[Event]] = USERS) -> str:
    return write(str(place), users, ITEMS, k=K, lanes=3, shards=SHARDS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("derive") / "original")


def rows(uri: str, *columns: str) -> list[tuple[Any, ...]]:
    """Of every user the values of some columns, in the data set's order."""
    dataset = Dataset.open(uri)
    tables = [dataset.read(group.shard, group.number, whole=True).to_pydict() for group in dataset.row_groups]
    return [row for table in tables for row in zip(*(table[name] for name in columns), strict=True)]


def parts(uri: str, protocol: str = "select") -> tuple[list[float], list[float]]:
    """Rewards of the training events, and of all others."""
    training: list[float] = []
    others: list[float] = []
    for (reward,) in rows(uri, "reward"):
        cuts = bounds(len(reward), K)
        cut = cuts.train if protocol == "select" else cuts.validation
        training += reward[:cut]
        others += reward[cut:]
    return training, others


@pytest.mark.parametrize("protocol", ["select", "refit"])
@pytest.mark.parametrize("change", [Permuted(), ItemMean(), Noisy(sd=0.5)])
def test_only_training_rewards_change(source: str, tmp_path: Path, change: Any, protocol: Any) -> None:
    original, derived = Dataset.open(source), str(tmp_path / "derived")
    manifest = derive(source, derived, change, seed=1, protocol=protocol)
    found = Dataset.open(derived)
    found.verify()
    assert rows(derived, "user", "item", "time", "order") == rows(source, "user", "item", "time", "order")
    assert found.row_groups == original.row_groups
    assert found.vocabulary() == original.vocabulary()
    for name in ("users", "items", "events", "lanes", "split", "vocabulary_sha256"):
        assert manifest[name] == original.manifest[name]
    assert parts(derived, protocol)[1] == parts(source, protocol)[1]
    assert parts(derived, protocol)[0] != parts(source, protocol)[0]
    for cut in ("select", "refit"):
        recomputed = Rewards.of(np.array(parts(derived, cut)[0], dtype=np.float32)).summary()
        assert manifest["statistics"][cut]["levels"] == recomputed["levels"]
        assert manifest["statistics"][cut]["reward_sd"] == pytest.approx(recomputed["reward_sd"])
    every = np.concatenate(parts(derived))
    assert manifest["reward"] == {"min": every.min(), "max": every.max()}
    assert manifest["derived_from"] == {
        "name": "small",
        "fingerprint": original.fingerprint,
        "origin": original.fingerprint,
        "change": change.model_dump(),
        "seed": 1,
        "protocol": protocol,
    }


def test_permuted_rewards_are_the_same_rewards(source: str, tmp_path: Path) -> None:
    """An exact permutation across users, another with another seed, and of no relation to what was there."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    derive(source, first, Permuted(), seed=1)
    derive(source, second, Permuted(), seed=2)
    was, one, two = (parts(uri)[0] for uri in (source, first, second))
    assert sorted(one) == sorted(two) == sorted(was)
    assert one != two
    # 1,477 pairs of independent rewards: a standard error of the correlation is .026.
    assert abs(np.corrcoef(was, one)[0, 1]) < 0.11
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.11


def test_permuted_continuous_rewards_keep_their_distribution(tmp_path: Path) -> None:
    """More than 1,024 distinct rewards, exponential: each of n strata of their quantiles gives one."""
    rng = np.random.default_rng(0)
    users = [[(item, float(rng.exponential()), time) for item, _, time in user] for user in USERS]
    source, derived = written(tmp_path / "original", users), str(tmp_path / "derived")
    assert Dataset.open(source).statistics("select")["levels"] is None
    derive(source, derived, Permuted())
    was, now = (np.sort(parts(uri)[0]) for uri in (source, derived))
    # The largest are far apart: between two quantiles there may be anything.
    np.testing.assert_allclose(now[:-30], was[:-30], atol=0.05)


def test_item_means_are_shrunk_towards_the_mean_of_all(source: str, tmp_path: Path) -> None:
    derive(source, str(tmp_path / "derived"), ItemMean(strength=3.0))
    pairs = []
    for (item, was), (now,) in zip(
        rows(source, "item", "reward"), rows(str(tmp_path / "derived"), "reward"), strict=True
    ):
        cut = bounds(len(item), K).train
        pairs += list(zip(item[:cut], was[:cut], now[:cut], strict=True))
    mean = np.mean([was for _, was, _ in pairs])
    for number in range(1, ITEMS + 1):
        own = [was for item, was, _ in pairs if item == number]
        expected = (sum(own) + 3 * mean) / (len(own) + 3)
        assert [now for item, _, now in pairs if item == number] == pytest.approx([expected] * len(own), rel=1e-6)


def test_noise_has_its_deviation_and_is_the_same_again(source: str, tmp_path: Path) -> None:
    derive(source, str(tmp_path / "one"), Noisy(sd=2.0), seed=5)
    derive(source, str(tmp_path / "two"), Noisy(sd=4.0), seed=5)
    was = np.array(parts(source)[0])
    one, two = (np.array(parts(str(tmp_path / name))[0]) - was for name in ("one", "two"))
    # n = 1,477: the mean's standard error is 2/√n = .05, the deviation's 2/√(2n) = .036.
    assert abs(one.mean()) < 0.2
    assert one.std() == pytest.approx(2.0, abs=0.15)
    np.testing.assert_allclose(two, 2 * one, atol=1e-5)


def test_thinning_keeps_whole_users_and_the_catalogue(source: str, tmp_path: Path) -> None:
    shares = {share: str(tmp_path / str(share)) for share in (0.05, 0.5)}
    for share, uri in shares.items():
        derive(source, uri, Thinned(share=share), seed=7)
    columns = ("user", "item", "reward", "time", "order")
    kept = {share: rows(uri, *columns) for share, uri in shares.items()}
    # Of 90 users 4.5 ± 2.1 and 45 ± 4.7 stay; those of the smaller share are among those of the larger.
    assert 1 <= len(kept[0.05]) <= 11
    assert 31 <= len(kept[0.5]) <= 59
    assert [row for row in rows(source, *columns) if row in kept[0.5]] == kept[0.5]
    assert [row for row in kept[0.5] if row in kept[0.05]] == kept[0.05]
    original, found = Dataset.open(source), Dataset.open(shares[0.05])
    found.verify()
    assert (found.users, found.lanes) == (len(kept[0.05]), min(3, len(found.row_groups)))
    assert torch.equal(found.active(), original.active())
    assert found.vocabulary_sha256 == original.vocabulary_sha256
    assert found.vocabulary()["item"] == original.vocabulary()["item"]
    training = [item for _, items, *_ in kept[0.05] for item in items[: bounds(len(items), K).train]]
    assert found.train_counts("select").tolist() == np.bincount(training, minlength=ITEMS + 1).tolist()
    assert found.statistics("select")["events"] == len(training)


def test_no_user_left_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of 90 users is left; take a larger share"):
        derive(source, str(tmp_path / "derived"), Thinned(share=1e-9))
    assert not (tmp_path / "derived").exists()


def predictions(uri: str) -> Iterator[np.ndarray]:
    """100, 101, … for the events of each row group, and NaN for each user's first."""
    dataset, start = Dataset.open(uri), 100
    for group in dataset.row_groups:
        lengths = [len(reward) for reward in dataset.read(group.shard, group.number).to_pydict()["reward"]]
        events = start + np.arange(sum(lengths), dtype=float)
        events[np.cumsum([0, *lengths[:-1]])] = np.nan
        start += len(events)
        yield events


def test_replaced_rewards_are_those_handed_in(source: str, tmp_path: Path) -> None:
    derived = str(tmp_path / "derived")
    derive(source, derived, Replaced(by="a model"), replacements=predictions(source))
    place = 100
    for (before,), (after,) in zip(rows(source, "reward"), rows(derived, "reward"), strict=True):
        cut = bounds(len(before), K).train
        assert after == [before[0], *range(place + 1, place + cut), *before[cut:]]
        place += len(before)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda arrays: arrays[:3], r"part-00001.parquet, row group 1: \d+ events, but rewards of shape \(0,\)"),
        (lambda arrays: [each[1:] for each in arrays], r"part-00000.parquet, row group 0: \d+ events, but rewards"),
        (lambda arrays: [each * np.inf for each in arrays], r"row group 0: a new reward is not a finite float32"),
    ],
)
def test_rewards_that_do_not_fit_leave_nothing_behind(source: str, tmp_path: Path, spoilt: Any, reason: str) -> None:
    replacements = spoilt(list(predictions(source)))
    with pytest.raises(InputError, match=reason):
        derive(source, str(tmp_path / "derived"), Replaced(by="a model"), replacements=replacements)
    assert not (tmp_path / "derived").exists()


def test_a_finished_one_is_found_and_another_is_refused(source: str, tmp_path: Path) -> None:
    derived = str(tmp_path / "derived")
    manifest = derive(source, derived, Noisy(sd=1.0))
    before = storage.list_files(derived)
    assert derive(source, derived, Noisy(sd=1.0)) == manifest
    assert storage.list_files(derived) == before
    for change, seed in ((Noisy(sd=2.0), 0), (Noisy(sd=1.0), 1), (Permuted(), 0)):
        with pytest.raises(InputError, match=r"holds a data set prepared from .*original with other settings"):
            derive(source, derived, change, seed=seed)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        derive(source, str(tmp_path / "full"), Permuted())


def test_a_damaged_shard_leaves_nothing_behind(tmp_path: Path) -> None:
    source = written(tmp_path / "original")
    (tmp_path / "original" / "shards" / "part-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"part-00002.parquet"):
        derive(source, str(tmp_path / "derived"), Noisy(sd=1.0))
    assert not (tmp_path / "derived").exists()


def test_what_was_derived_counts_as_the_original_for_a_policy_s_lineage(source: str, tmp_path: Path) -> None:
    """Also what was derived from it in turn; validation after refit stays refused."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    derive(source, one, Noisy(sd=1.0))
    derive(one, two, Thinned(share=0.5))
    original, twice = Dataset.open(source), Dataset.open(two)
    lineage = [original.lineage("select", "bc"), twice.lineage("select", "exp_rsft")]
    for dataset in (original, Dataset.open(one), twice):
        for part in ("validation", "test"):
            assert check_lineage(lineage, dataset.manifest, part) is None
    with pytest.raises(InputError, match=r"'control' trained on validation events .* refit; use a policy .* part=test"):
        check_lineage([twice.lineage("refit", "control")], original.manifest, "validation")
    elsewhere = Dataset.open(write(str(tmp_path / "other"), USERS[:9], ITEMS, k=K, lanes=1, shards=[[9]]))
    found = check_lineage(lineage, elsewhere.manifest, "test")
    assert found is not None
    assert "'exp_rsft' (other events)" in found


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000])
def test_a_permutation_by_seed_is_one(n: int) -> None:
    place = np.arange(n)
    assert sorted(draws.permuted(place, n, 3).tolist()) == place.tolist()
    assert np.array_equal(
        np.concatenate([draws.permuted(part, n, 3) for part in (place[:7], place[7:])]), draws.permuted(place, n, 3)
    )


def test_permutations_of_many_seeds_are_as_even_as_random_ones() -> None:
    """Of 250 places in ten blocks, to which blocks 40 permutations take them: χ² of 81 degrees of freedom, 81 ± 13."""
    place = np.arange(250)
    pairs = np.concatenate([place // 25 * 10 + draws.permuted(place, 250, seed) // 25 for seed in range(40)])
    assert ((np.bincount(pairs, minlength=100) - 100) ** 2 / 100).sum() == pytest.approx(81, abs=4 * 13)
