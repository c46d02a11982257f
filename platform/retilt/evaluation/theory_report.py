"""What the experiment on section 4 found, as Markdown; ``theory.json`` is the source (workflows/theory.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from retilt.evaluation.markdown import pipe_table

NAMES = {"exp_rsft": "Exp-RSFT", "rlhf": "RLHF", "no difference": "no difference"}


def render(results: Mapping[str, Any], plot: str) -> str:
    """Markdown of the results; ``plot`` is the path of their picture, relative to where the text will lie."""
    lines = [
        "# The theory of Exp-RSFT, measured",
        "",
        *(f"- {sentence}" for sentence in conclusions(results)),
        "",
        f"![Bounds, gains, fresh noise, who wins]({plot})",
        *_bounds(results),
        *_attained(results),
        *_fresh(results),
        *_winners(results["winners"]),
        "",
        f"Seed {results['seed']}, {results['seeds']} worlds of the map; retilt {results['code']['retilt']}, source "
        f"{results['code']['source_sha256'][:12]}.",
    ]
    return "\n".join(lines) + "\n"


def conclusions(results: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each part, from the numbers."""
    largest, radius = max((max(each["largest_loss"]) / each["radius"], each["radius"]) for each in results["bounds"])
    yield (
        f"Frozen noise: the largest loss of any state in the simulated world, over all λ, was {largest:.2f} ε (at "
        f"ε = {radius:.2f}), where Theorem 4.3 allows 2 ε."
    )
    attained = max(each["ratio"] for each in results["attained"])
    needles = [each["ratio"] for each in results["one_good_item"]]
    yield (
        f"The bounds cannot be much better: two items lose {attained:.1%} of 2 ε, and one good item among many loses "
        f"{min(needles):.2f} to {max(needles):.2f} of σ √(2 ln N)."
    )
    equal, unequal = results["fresh_noise"]
    last = [each["logs"][-1] for each in (equal, unequal)]
    yield (
        f"Fresh noise, {last[0]['events']:,} events: total variation {last[0]['true_tilt']:.3f} from the tilt of r* "
        f"where all items have the same noise, {last[1]['true_tilt']:.3f} where they do not "
        f"({last[1]['limit']:.3f} from the tilt of λ ln E exp(r̂/λ) there)."
    )
    cells = [cell["winner"] for log in results["winners"]["logs"] for cell in log["cells"]]
    yield (
        f"Of {len(cells)} cells of the map, Exp-RSFT is worth more in {cells.count('exp_rsft')}, RLHF in "
        f"{cells.count('rlhf')}; in {cells.count('no difference')} the 95% interval holds 0."
    )


def _bounds(results: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Frozen noise: bounds and losses", "")
    yield (
        "Loss is V(π_β) − V(π_λ) with r* in [0, 4]; ε is the largest noise of any state and item, *by formula* the one "
        "that 95% of such worlds stay below. The gain is the mean over states at the best λ."
    )
    yield ""
    rows = [
        [
            f"{each['noise']:g}",
            f"{each['radius']:.2f}",
            f"{each['radius_95']:.2f}",
            f"{each['any_temperature']:.2f}",
            f"{max(each['largest_loss']):+.2f}",
            f"{-min(each['mean_loss']):+.3f}",
            f"{each['best_temperature']:.2g}",
        ]
        for each in results["bounds"]
    ]
    yield from pipe_table(["σ", "ε", "ε by formula", "2 ε", "largest loss over λ", "best gain", "best λ"], rows)
    yield from ("", "The λ from which on the loss of every state stays within a tolerance τ:", "")
    rows = [
        [
            f"σ = {each['noise']:g}, τ = {safe['tolerance']:g}",
            *(f"{safe[name]:.2f}" for name in ("equation_15", "tanh", "realised")),
        ]
        for each in results["bounds"]
        for safe in each["tolerances"]
    ]
    yield from pipe_table(["", "eq. 15", "tanh bound", "realised"], rows)
    yield ""
    yield f"A realised λ of {results['temperatures'][0]:g} is the smallest that was tried."


def _attained(results: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Worlds that attain the bounds", "")
    rows = [[f"{each['temperature']:g}", f"{each['ratio']:.3f}"] for each in results["attained"]]
    yield from pipe_table(["λ / ε", "loss of the worst two items ÷ 2 ε"], rows)
    yield from ("", "One good item among N − 1 bad ones, λ → 0, Gaussian noise; the loss is its mean over the noise,")
    yield "at the advantage of the good item that makes it largest."
    yield ""
    rows = [
        [f"{each['items']:,}", f"{each['draws']:,}", f"{each['advantage']:.2f}", f"{each['ratio']:.3f}"]
        for each in results["one_good_item"]
    ]
    yield from pipe_table(["N", "draws", "advantage ÷ σ √(2 ln N)", "loss ÷ σ √(2 ln N)"], rows)


def _fresh(results: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Fresh noise: what training tends to", "")
    equal, unequal = results["fresh_noise"]
    yield (
        f"Total variation of the optimum of eq. 11 on a log, λ = {equal['temperature']:g}, from the tilt of r* and "
        "from that of λ ln E exp(r̂/λ)."
    )
    yield ""
    rows = [
        [f"{mine['events']:,}", *(f"{each:.4f}" for each in (mine["true_tilt"], other["true_tilt"], other["limit"]))]
        for mine, other in zip(equal["logs"], unequal["logs"], strict=True)
    ]
    yield from pipe_table(["events", "equal noise: tilt of r*", "unequal: tilt of r*", "unequal: with E exp"], rows)
    yield ""
    value, deviation = unequal["value"], unequal["noise_sd"]
    yield (
        f"With unequal noise the limit seeks risk: its choices have a mean σ of {deviation['limit']:.3f}, those of the "
        f"tilt of r* {deviation['true_tilt']:.3f}, those of π_β {unequal['noise_sd_of_behaviour']:.3f}. True values: "
        f"{value['limit']:.3f}, {value['true_tilt']:.3f}, {unequal['value_of_behaviour']:.3f}."
    )


def _winners(winners: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Who wins", "")
    yield (
        f"{winners['items']} items, {winners['states']} states, {len(winners['seeds'])} worlds. True value of Exp-RSFT "
        "− RLHF with 95% t-intervals over worlds, each λ chosen on held-out events; in brackets the verdict with the λ "
        "of largest true value, where it differs. Within a state r* has an SD of "
        f"{winners['reward_sd']:.2f}, which is the error of a reward model that knows no item. Intervals are per cell, "
        "not adjusted for their number."
    )
    for coverage in dict.fromkeys(log["coverage"] for log in winners["logs"]):
        logs = [log for log in winners["logs"] if log["coverage"] == coverage]
        yield ""
        yield f"**{coverage:g} events an item** ({logs[0]['unseen']:.0%} of the items without event)"
        yield ""
        header = [f"τ = {cell['error']:g} (RMSE {cell['rmse']:.2f})" for cell in logs[0]["cells"]]
        rows = [
            [
                f"σ = {log['noise']:g}; gain {log['exp_rsft']['value']:+.2f}",
                *map(_cell, log["cells"]),
                f"{_cell(log['item_means'])}; RMSE {log['item_means']['rmse']:.2f}",
            ]
            for log in logs
        ]
        yield from pipe_table(["noise; gain of Exp-RSFT over BC", *header, "RLHF on item means"], rows)


def _cell(cell: Mapping[str, Any]) -> str:
    difference, best = cell["difference"], cell["winner_with_best_temperatures"]
    text = f"**{NAMES[cell['winner']]}** {difference['value']:+.2f}"
    text += f" ({difference['low']:+.2f} to {difference['high']:+.2f})"
    return text if best == cell["winner"] else f"{text} [{NAMES[best]}]"
