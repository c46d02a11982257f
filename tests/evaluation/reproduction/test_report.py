"""The report's views: the numbers of the results, whatever parts there are, and nothing from outside."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from tests.evaluation.reproduction.made_up import results
from tests.evaluation.views.reading import read, require_tables

from retilt.evaluation.reproduction import figures, report, tables
from retilt.evaluation.reproduction.published import PUBLISHED
from retilt.evaluation.reproduction.verdicts import CLAIMS
from retilt.evaluation.views.files import Views

PICTURES = {f"{name}.png" for name in ("histogram", "differences", "courses", "temperature", "judge", "gains")}
LEAST: dict[str, Any] = {
    "preset": "ml-100k",
    "dataset": {"name": "a|b<c>", "users": 943, "items": 1682, "events": 100_000, "events_per_user": 106.04},
    "protocol": {"split": "last_k", "k": 10, "min_reward": 4.5, "seeds": [0], "epochs": 6},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, Any], Views]:
    """Results of three seeds, and what was written of them."""
    found, place = results(3), tmp_path_factory.mktemp("report")
    report.write(str(place), found)
    source = json.loads((place / "results.json").read_text())
    pictures = {path.name: path.read_bytes() for path in (place / "figures").iterdir()}
    return found, Views(source, (place / "report.html").read_text(), (place / "report.md").read_text(), pictures)


def test_the_source_is_whole(whole) -> None:
    found, views = whole
    assert {name: views.source[name] for name in found} == json.loads(json.dumps(found))
    assert (views.source["kind"], views.source["format"]) == ("reproduction", 1)
    assert len(views.source["verdicts"]) == len(CLAIMS) == 19


def test_html_refers_to_nothing_outside_itself(whole) -> None:
    reader = read(whole[1].html)
    assert reader.references
    pictures = [each for each in reader.references if each.startswith("data:image/png;base64,")]
    assert {base64.b64decode(each.split(",")[1]) for each in pictures} == set(whole[1].pictures.values())
    others = [each for each in reader.references if each not in pictures]
    assert all(re.fullmatch(r"#s\d+", each) for each in others)
    assert not re.search(r"https?://|url\(|@import|<script|<link", whole[1].html)


def test_markdown_tables_are_well_formed_and_pictures_exist(whole) -> None:
    assert require_tables(whole[1].markdown) == 20
    named = re.findall(r"\]\(figures/([^)]+)\)", whole[1].markdown)
    assert set(named) == set(whole[1].pictures) == PICTURES


def test_both_views_say_the_same_numbers(whole) -> None:
    found, views = whole
    text = read(views.html).text
    reached = found["arms"]["exp_rsft"]["test"]["high_reward"]["ndcg@10"]
    change = f"{reached['value']:.4f} ({reached['versus']['bc']['ratio'] - 1:+.1%})†"
    assert change in text
    assert f"| **{change}** |" in views.markdown
    primary = found["primary"][0]
    said = (
        f"Exp-RSFT is better than BC continued; difference in NDCG@10: {primary['value']:+.4f}, "
        f"users {primary['low']:+.4f} to {primary['high']:+.4f}, "
        f"seeds {primary['t_low']:+.4f} to {primary['t_high']:+.4f}, Holm's p {primary['p_holm']:.3f}."
    )
    assert said in text
    assert f"- {said}" in views.markdown
    assert "reward_model is WORSE than predicting the mean of all rewards: MSE 1.3000 against 1.2400" in text
    assert "PPO, temperature-0.12-rate-1 (not chosen), seed 0: hacking after epochs 2, 3; since the start" in text
    assert "30 epochs: ten were run" in text
    assert "python jobs/reproduce.py preset=ml-1m seeds=3 output=runs/x" in text


def test_tables_by_hand(whole) -> None:
    found = whole[0]
    assert tables.sizes(found).rows == [
        ["toy", "6,040", "3,706", "165.60", "800"],
        ["ML-1M in the paper", "6,040", "3,706", "165.60", "1,530"],
    ]
    audit = tables.audit(found)
    assert audit is not None
    assert audit.rows[0][2] == "0.9000 (0.8700 to 0.9300)"
    assert audit.rows[1][5] == "+0.4000 (+0.3800 to +0.4200)"
    assert audit.bold == {(0, 6), (2, 6)}, "the strong reward model has the least errors"
    papers = tables.papers(found)
    assert papers is not None
    assert papers.rows[1][1].startswith("0.0091 (-93.0%) / 0.")  # Table 3: .0091 / .1304 − 1
    sweep = tables.sweep(found, "best")
    assert sweep is not None
    assert [row[:2] for row in sweep.rows][2] == ["0.5 (chosen)", "50.0%"]
    costs = tables.costs(found)
    assert costs is not None
    assert costs.rows[3] == ["Exp-RSFT", "tuned", "temperature=0.5", "0.001", "8, 1 failed", "12,000,000", "3,600"]
    assert costs.rows[-1] == ["Reward model", "–", "–", "–", "–", "1,000,000", "60"]
    found["arms"]["exp_rsft"]["algorithm"]["temperature"] = 0.866024020077422  # as a search for an ESS gives it
    again = tables.costs(found)
    assert again is not None
    assert again.rows[3][2] == "temperature=0.866"


def test_the_strong_reward_model_is_compared_with_what_is_told_as_much(whole) -> None:
    said = "its MSE differs by -0.0400 (-0.0700 to -0.0100) and its MAE by +0.0100 (-0.0200 to +0.0400)"
    assert said in " ".join(whole[1].markdown.split())


def test_who_gains_compares_tuned_arms_within_groups(whole) -> None:
    gains = tables.groups(whole[0])
    assert gains is not None
    assert list(gains.header) == ["Targets", "n", "RSFT", "Exp-RSFT", "Top-rated", "DPO", "PPO"]
    assert [row[1] for row in gains.rows] == ["400", "400"]
    tests = whole[0]["arms"]["exp_rsft"]["test"]
    value = tests["within/activity_low"]["ndcg@10"]["versus"]["bc_continued"]["value"]
    assert gains.rows[0][3].startswith(f"{value:+.4f} (")
    recommended = tables.recommended(whole[0])
    assert recommended is not None
    assert recommended.rows[0][:2] == ["BC", "0.4000 (0.3500 to 0.4500)"]


def test_a_group_without_targets_has_no_gain_in_table_or_picture() -> None:
    found = results(1)
    nothing = dict.fromkeys(("value", "low", "high", "t_low", "t_high"))
    for arm in found["arms"].values():
        group = arm["test"]["within/activity_high"]
        versus = {other: dict(nothing) for other in group["ndcg@10"].get("versus", {})}
        group |= {"n": 0, "ndcg@10": {**nothing, "seeds": [], "versus": versus}}
    gains = tables.groups(found)
    assert gains is not None
    assert gains.rows[1][1:] == ["0", *["–"] * len(gains.rows[1][2:])]
    assert gains.rows[0][2] != "–"
    assert figures.groups(found) is not None


def test_least_results_say_what_was_not_run() -> None:
    views = report.build(LEAST)
    assert views.pictures == {}
    assert require_tables(views.markdown) == 2
    assert "# Reproduction of arXiv:2603.10279 on a\\|b&lt;c>, preset ml-100k" in views.markdown
    text = read(views.html).text
    assert "a|b<c>" in text
    assert "Of 15 claims of the paper: 0 held, 0 not distinguishable, 0 did not hold, 15 not run." in text
    assert "Of 4 claims that the paper does not make: 0 held, 0 not distinguishable, 0 did not hold, 4 not run." in text
    assert text.count("Not run.") == 9
    assert "nothing here is claimed beyond the policies that this seed gave" in text
    assert "The paper has no figures for a|b<c>." in text


def test_one_seed_is_said_to_be_one_in_the_layout_of_table_6() -> None:
    found = results(1)
    found["preset"], found["protocol"]["headline"] = "watch_time", "high_return"
    for arm in found["arms"].values():
        arm["test"]["high_return"] = arm["test"].pop("high_reward")
    text = report.build(found).markdown
    assert "Exp-RSFT is better than BC continued (one seed: of these trained policies only)" in text
    assert "| none (one seed) |" in text
    assert "held (one seed: no claim beyond these trained policies)" in text
    assert "## Methods (in the layout of Table 6)" in text
    assert "targets of users with a high return" in text
    ratio = found["arms"]["exp_rsft"]["test"]["high_return"]["ndcg@10"]["versus"]["rsft"]["ratio"]
    assert f"({ratio - 1:+.1%})†" in text
    assert "| Exp-RSFT | +106.2% / " in text


def test_undefined_numbers_are_dashes() -> None:
    found = results(1)
    for metric in found["arms"]["ppo"]["test"]["high_reward"].values():
        if isinstance(metric, dict):
            metric.update(value=None, low=None, high=None)
    found["arms"]["ppo"]["avg_reward"]["judge"].update(value=None, low=None, high=None)
    text = report.build(found).markdown
    assert "None" not in text
    assert "nan" not in text.lower()
    assert require_tables(text) == 20


def test_what_holds_over_users_alone_is_told_apart_from_no_difference() -> None:
    found = results(3)
    found["primary"][0] |= {"value": -0.002, "low": -0.003, "high": -0.001, "t_low": -0.006, "t_high": 0.002}
    text = report.build(found).markdown
    assert "Exp-RSFT is worse, over users alone and so without a claim, than BC continued; difference" in text
    found["primary"][0] |= {"t_low": -0.003, "t_high": -0.001, "p_holm": 0.06}
    text = report.build(found).markdown
    assert "Exp-RSFT is worse, but not by Holm's p and so without a claim, than BC continued; difference" in text


def test_a_mark_of_a_primary_comparison_needs_holms_p() -> None:
    found = results(1)
    found["preset"] = "watch_time"
    (rsft,) = (each for each in found["primary"] if each["against"] == "rsft")
    marked = tables.methods(found, "high_reward")
    assert marked is not None
    assert marked.rows[3][0] == "Exp-RSFT"
    assert "†" in marked.rows[3][1]
    rsft["p_holm"] = 0.09
    unmarked = tables.methods(found, "high_reward")
    assert unmarked is not None
    assert "†" not in unmarked.rows[3][1]


def test_a_group_that_holds_the_same_targets_again_is_left_out() -> None:
    found = results(1)
    assert tables.further(found) == ["all", "untied"]
    for arm in found["arms"].values():
        arm["test"]["untied"]["n"] = arm["test"]["all"]["n"]
    assert tables.further(found) == ["all"]


def test_every_trial_and_what_became_of_it(whole) -> None:
    trials = tables.trials(whole[0])
    assert trials is not None
    assert [row for row in trials.rows if row[0] == "DPO"] == [
        ["DPO", "temperature-0.5-rate-1", "10", "4", "0.2000", "chosen"],
        ["DPO", "temperature-0.12-rate-1", "2", "1", "0.1000", ""],
        ["DPO", "temperature-0.01-rate-1", "2", "–", "–", "failed: the weights leave too little"],
    ]


def test_published_figures_are_the_papers() -> None:
    # Table 4: Exp-RSFT's HR@10 +6.7% from BC; Table 5: PPO's MRR −70.3%.
    books, large = PUBLISHED["amazon-books"].metrics, PUBLISHED["ml-20m"].metrics
    assert large["exp_rsft"][2] / large["bc"][2] - 1 == pytest.approx(0.067, abs=5e-4)
    assert books["ppo"][4] / books["bc"][4] - 1 == pytest.approx(-0.703, abs=5e-4)
    assert PUBLISHED["ml-1m"].errors["mae"]["item_mean"] == 0.7619
