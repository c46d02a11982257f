"""An arm's look."""

from __future__ import annotations

from retilt.evaluation.views import methods


def test_an_arm_looks_the_same_everywhere() -> None:
    looks = [(each.colour, each.marker, each.dashed) for each in methods.METHODS.values()]
    assert len(set(looks)) == len(looks)
    assert methods.ordered(["ppo", "new", "bc"]) == ["bc", "ppo", "new"]
    assert methods.title("new") == "new"
