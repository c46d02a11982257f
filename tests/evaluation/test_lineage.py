"""Parts that a policy's ancestors trained on are refused, for every pair of protocol, part and split."""

from __future__ import annotations

from typing import Any

import pytest

from retilt.evaluation.lineage import check_lineage, judge_warning
from retilt.types import InputError

LAST, LAST_10 = {"name": "last", "k": 1}, {"name": "last_k", "k": 10}
MANIFEST = {"fingerprint": "d" * 64, "source_fingerprint": "s" * 64, "split": LAST_10}


def ancestor(protocol: str, name: str = "bc", **other: Any) -> dict[str, Any]:
    return {"name": name, "data": "d" * 64, "source": "s" * 64, "split": LAST_10, "protocol": protocol, **other}


@pytest.mark.parametrize(("protocol", "part"), [("select", "validation"), ("select", "test"), ("refit", "test")])
def test_unseen_parts_pass(protocol: str, part: Any) -> None:
    assert check_lineage([ancestor(protocol), ancestor(protocol, "exp_rsft")], MANIFEST, part) is None


def test_refit_saw_the_validation_part() -> None:
    with pytest.raises(InputError, match=r"'bc' trained on validation events .* refit; use a policy .* part=test"):
        check_lineage([ancestor("refit")], MANIFEST, "validation")


def test_an_initial_policy_counts() -> None:
    with pytest.raises(InputError, match="'grandparent'"):
        check_lineage([ancestor("refit", "grandparent"), ancestor("select", "child")], MANIFEST, "validation")


@pytest.mark.parametrize(("protocol", "part"), [("select", "test"), ("refit", "test"), ("select", "validation")])
def test_another_split_of_the_same_events_may_have_trained_on_the_part(protocol: str, part: Any) -> None:
    # `last` trains up to the last or last but one event; `last_k` tests the last ten.
    with pytest.raises(InputError, match=r"split last \(k = 1\), the split here is last_k \(k = 10\)"):
        check_lineage([ancestor(protocol, data="e" * 64, split=LAST)], MANIFEST, part)


def test_a_wider_split_of_the_same_events_is_unverified() -> None:
    manifest = {**MANIFEST, "split": LAST}
    found = check_lineage([ancestor("refit", data="e" * 64)], manifest, "test")
    assert found is not None
    assert found.startswith("unverified: ")
    assert "'bc' (the same events, prepared otherwise)" in found


def test_short_users_make_refit_of_a_wider_split_reach_the_validation_part() -> None:
    manifest = {**MANIFEST, "split": LAST}
    # A user with three events has one test and one validation event in both splits, so refit saw it.
    with pytest.raises(InputError, match="validation events"):
        check_lineage([ancestor("refit", data="e" * 64)], manifest, "validation")
    assert check_lineage([ancestor("select", data="e" * 64)], manifest, "validation") is not None


@pytest.mark.parametrize("source", ["t" * 64, None])
def test_other_events_are_unverified(source: str | None) -> None:
    found = check_lineage([ancestor("refit", data="e" * 64, source=source), ancestor("refit")], MANIFEST, "test")
    assert found is not None
    assert "'bc' (other events)" in found


def test_a_policy_without_training_has_seen_nothing() -> None:
    assert check_lineage([], MANIFEST, "validation") is None


def test_a_judge_that_knows_the_part_is_told_of_and_not_refused() -> None:
    assert judge_warning([ancestor("select"), ancestor("refit", "judge")], MANIFEST, "test") is None
    found = judge_warning([ancestor("select"), ancestor("refit", "judge")], MANIFEST, "validation")
    assert found == (
        "'judge' trained on validation events of this data set: its protocol was refit; its scores remember what the "
        "choices logged there were rewarded with"
    )
    found = judge_warning([ancestor("select", data="e" * 64, split=LAST)], MANIFEST, "test")
    assert found is not None
    assert "its split last (k = 1), the split here is last_k (k = 10); its scores remember" in found
    found = judge_warning([ancestor("select", data="e" * 64, source=None)], MANIFEST, "test")
    assert found is not None
    assert found.startswith("unverified: trained on another data set")
