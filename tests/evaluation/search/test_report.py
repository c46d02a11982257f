"""The report of a λ search: what it must say, whatever parts there are, and nothing from outside."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.search.made_up import measure, search, small
from tests.evaluation.views.reading import read, require_tables

from retilt.evaluation.search import axis, figures, layout, report, sections, tables, words

PICTURES = {f"{name}.png" for name in ("metrics", "tilt", "curves", "histogram")}
LEAST: dict[str, Any] = {"dataset": {"name": "a|b<c>"}}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """A search of two learning rates with a failed trial, and the folder of its report."""
    found, place = search((1e-3, 3e-4)), tmp_path_factory.mktemp("report")
    report.write(str(place), found)
    return found, place


def trial(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["trials"] if each["name"] == name)


def blocks(found: dict[str, Any]) -> str:
    """All of the document's text but its tables and pictures."""
    document = sections.document(found)
    return "\n".join(map(str, [*document.lead, *(block for each in document.sections for block in each.blocks)]))


def test_source_and_views_are_written(written) -> None:
    found, place = written
    assert json.loads((place / "search.json").read_text()) == json.loads(json.dumps(found))
    html, markdown = (place / "report.html").read_text(), (place / "report.md").read_text()
    assert {path.name for path in (place / "figures").iterdir()} == PICTURES
    assert set(re.findall(r"\]\(figures/([^)]+)\)", markdown)) == PICTURES
    reader = read(html)
    pictures = [each for each in reader.references if each.startswith("data:image/png;base64,")]
    shown = {base64.b64decode(each.split(",")[1]) for each in pictures}
    assert shown == {path.read_bytes() for path in (place / "figures").iterdir()}
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)
    assert require_tables(markdown) == 7


def test_both_views_say_the_choice_and_its_doubts(written) -> None:
    place = written[1]
    html, markdown = read((place / "report.html").read_text()).text, (place / "report.md").read_text()
    for said in (
        "Chosen: λ = 0.6 at learning rate 0.001, after 10 epochs; validation NDCG@10 on targets with a reward of at "
        "least 4.5: 0.1045 (0.0985 to 0.1105). It is the largest λ whose deficit to the best is at most one standard "
        "error.",
        "Better than BC continued, both after 3 epochs: NDCG@10 differs by +0.0125 (+0.0061 to +0.0188)",
        "No λ can be told from Top-rated",
        "1 of 22 trials failed",
        "3,870,000 positions trained in 538 worker-seconds: 4.30 times the 900,000 of one full-length run.",
        "Hollow: ended early, before the rung of 3 epochs in which λ was chosen",
        "λ = 0.17 was merged with λ = 0.15",
        "residual around user and item means on 90,570 events",
        "Beyond the axis of λ (0.15 to 3.6), so not drawn: tanh bound above, eq. 15 above.",
        "very loose",
        "python jobs/tune_lambda.py dataset=runs/ml-100k output=runs/search",
        "python jobs/evaluate.py policies=runs/search/trials/lambda-0.6/policy/best",
    ):
        assert said in html, said
        assert said in markdown, said
    assert "No λ can be told from BC" not in markdown
    assert "loss is not finite at step 12 | <nan>" in html
    assert "loss is not finite at step 12 \\| &lt;nan>" in markdown


def test_trials_by_hand(written) -> None:
    table = tables.trials(written[0])
    assert table is not None
    rows = {row[0]: row for row in table.rows}
    assert next(iter(rows)).startswith("top_rated")
    assert list(rows)[-1].startswith("rsft")
    assert rows["lambda-0.6-rate-0.001"] == [
        "lambda-0.6-rate-0.001", "0.6", "0.001", "10", "10", "0.1045 (0.0985 to 0.1105)", "0.0975", "0.0941", "0.67",
        "0.5", "5.33", "chosen",
    ]  # fmt: skip
    assert rows["bc-rate-0.001"][1] == "→ ∞"
    assert rows["lambda-0.4-rate-0.001"][-1] == "best"
    assert rows["lambda-3.6-rate-0.001"][-1] == "ended early"
    assert rows["rsft-rate-0.0003"][4:] == ["–"] * 7 + ["failed"]
    assert {row for row, _ in table.bold} == {list(rows).index("lambda-0.6-rate-0.001")}


def test_the_deficit_is_turned_into_chosen_minus_best() -> None:
    table = tables.compared(search())
    assert table is not None
    best = table.rows[0]
    assert best == ["the best, lambda-0.4-rate-0.001", "3", "-0.0004 (-0.0026 to +0.0018)", "0.0011", "–"]
    assert [row[-1] for row in table.rows[1:]] == ["better", "no difference"]


def test_costs_stand_beside_one_full_length_run() -> None:
    table = tables.costs(search())
    assert table is not None
    # 900,000 positions at 7,200 a worker-second.
    assert table.rows[-1] == ["one full-length run", "10", "900,000", "about 125"]
    assert sum(int(row[2].replace(",", "")) for row in table.rows[:-2]) == int(table.rows[-2][2].replace(",", ""))


def test_marks_tell_the_rungs() -> None:
    found = small()
    assert figures.lengths(found) == {figures.BEFORE: "1", figures.IN_IT: "3", figures.GONE_ON: "10"}
    found["protocol"].update(search="grid", deciding_epochs=10)
    for each in found["trials"]:
        each.update(epochs=10)
        each.pop("deciding", None)
    assert figures.lengths(found) == {figures.IN_IT: "10"}
    assert "Hollow" not in blocks(found)


def test_comparable_values_are_drawn_on_the_line() -> None:
    winner = trial(search(), "lambda-0.6-rate-0.001")
    then = layout.decisive(winner, "ndcg@10")
    assert then == winner["deciding"]["ndcg@10"] != winner["ndcg@10"]
    assert layout.decisive(trial(search(), "bc-rate-0.001"), "mrr") == trial(search(), "bc-rate-0.001")["mrr"]


def test_a_floor_within_the_axis_is_drawn() -> None:
    found = small()
    before = figures.metrics(found)
    found["noise"].update(floor=0.55, floor_tanh=0.45)
    assert "Drawn as a dotted line: tanh bound, eq. 15." in blocks(found)
    assert figures.metrics(found) != before
    found["noise"].update(floor_tanh=0.0)
    assert axis.floors(found) == {"eq. 15": 0.55}, "0 allows any λ"


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        ("worse", "The chosen λ is worse than BC continued"),
        ("no difference", "No λ can be told from BC continued or Top-rated"),
        ("too few users", "No λ can be told from BC continued: there are too few validation users"),
    ],
)
def test_doubts_about_bc(standing: str, said: str) -> None:
    found = small()
    found["choice"]["versus"]["bc"]["standing"] = standing
    if standing == "too few users":
        found["choice"]["versus"]["bc"].update(low=None, high=None)
    assert any(each.startswith(said) for each in words.warnings(found))
    assert any(each.startswith(f"warning: {said}") for each in report.summary(found))


def test_another_than_the_chosen_one_may_be_better_than_bc() -> None:
    """The rule takes the largest λ near the best: that it cannot be told from BC is not said of the others."""
    found = small()
    better = next(each["name"] for each in found["trials"] if each["method"] == "exp_rsft")
    found["choice"]["versus"]["bc"] |= {"standing": "no difference", "better": [better]}
    said = [each for each in words.warnings(found) if "told from" in each and "BC continued" in each]
    assert len(said) == 1
    assert said[0].startswith("The chosen λ, the largest near the best, cannot be told from BC continued; better than")


def test_a_choice_at_the_edge_of_the_grid_is_said_to_be_one() -> None:
    found = search()
    found["choice"]["temperature"] = 3.6
    assert "The chosen λ is the largest tried: what lies above it, towards BC continued, is not known." in [
        *words.warnings(found)
    ]
    assert not any("tried" in each for each in words.warnings(search((1e-3,), (0.6,))))


def test_one_temperature_only() -> None:
    views = report.build(search((1e-3,), (0.6,)))
    assert set(views.pictures) == PICTURES
    assert "Chosen: λ = 0.6" in views.markdown


def test_a_choice_taken_over_has_one_trial_and_says_why() -> None:
    found = small()
    found["trials"] = [trial(found, "lambda-0.6-rate-0.001")]
    found["trials"][0].pop("deciding")
    found["protocol"].update(search="previous", deciding_epochs=10, rungs=[{"epochs": 10, "trials": 1}])
    found["choice"].update(deficit=None, versus={}, best="lambda-0.6-rate-0.001", reason="The earlier choice stands.")
    found["drift"] = {
        "previous": "runs/yesterday", "level": "none", "psi": 0.0123,
        "shifts": {"events_per_user": 0.02, "items": None}, "reason": "Nothing moved: no drift.",
    }  # fmt: skip
    text = report.build(found).markdown
    assert "Not compared with BC continued: it was not trained." in text
    assert "No drift since runs/yesterday. Nothing moved: no drift." in text
    assert "| PSI of the rewards | 0.012 |" in text
    assert "| events per user | +2.0% |" in text
    assert "The previous choice was kept" in text


def test_least_search_says_what_is_not_there() -> None:
    views = report.build(LEAST)
    assert views.pictures == {}
    assert "# λ search on a\\|b&lt;c>" in views.markdown
    assert "Nothing was chosen." in views.markdown
    assert "a|b<c>" in read(views.html).text
    assert (views.source["kind"], views.source["format"]) == ("lambda_search", 1)
    assert report.summary(LEAST) == ["Nothing was chosen."]


DRAWN = ("protocol", "noise", "initial_policy", "trials", "choice")
"""Parts that the pictures are made of."""


@pytest.mark.parametrize("absent", [*[(each,) for each in DRAWN], [each for each in search() if each not in DRAWN]])
def test_any_part_may_be_null(absent: tuple[str, ...]) -> None:
    found = small() | dict.fromkeys(absent) | {"dataset": {"name": "ml-100k"}}
    assert sections.document(found).title == "λ search on ml-100k"
    assert "None" not in "\n".join(report.summary(found))


@pytest.mark.parametrize("absent", ["ess", "kl", "curve", "deciding", "all", "epochs", "best_epoch", "ndcg@10"])
def test_any_value_of_a_trial_may_be_null(absent: str) -> None:
    found = small()
    for each in found["trials"]:
        each[absent] = None
    text = report.build(found).markdown
    require_tables(text)
    assert "None" not in text
    assert "nan" not in text.lower()


def test_a_trial_may_have_nothing_but_its_name() -> None:
    found = small()
    found["trials"] = [{"name": "x", "method": "exp_rsft", "temperature": 0.5}, {"name": "y", "method": "bc"}]
    views = report.build(found)
    assert set(views.pictures) == {"histogram.png"}
    assert "| x | 0.5 | – |" in views.markdown


def test_undefined_numbers_are_dashes() -> None:
    found = small()
    for each in found["trials"]:
        each["hr@10"] = {"value": None, "low": None, "high": None}
        each["mrr"] = measure(0.05) | {"low": None, "high": None}
    views = report.build(found)
    assert "None" not in views.markdown
    assert "| – |" in views.markdown
    assert "| 0.0500 |" in views.markdown


def test_all_trials_failed() -> None:
    found = search()
    for each in found["trials"]:
        each.update(state="failed", reason="no room")
    found["choice"] = None
    views = report.build(found)
    assert set(views.pictures) == {"histogram.png"}
    assert "Nothing was chosen." in views.markdown
    assert views.markdown.count("no room") == len(found["trials"])
