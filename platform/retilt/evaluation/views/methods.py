"""What each arm is called and looks like, the same in every table and figure.

Colours are Okabe and Ito's (2008), told apart with any colour vision. A paper-like arm has the colour of its method and
an open mark on a dashed line; controls share Exp-RSFT's family and differ by mark.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BLACK, GREY, ORANGE, SKY, GREEN = "#000000", "#8a8f98", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILLION, PURPLE, NAVY = "#0072b2", "#d55e00", "#cc79a7", "#1b3a5b"


@dataclass(frozen=True)
class Method:
    """How an arm is shown."""

    title: str
    colour: str
    marker: str
    dashed: bool = False


METHODS = {
    "bc": Method("BC", BLACK, "o"),
    "bc_continued": Method("BC continued", GREY, "o"),
    "rsft": Method("RSFT", ORANGE, "s"),
    "exp_rsft": Method("Exp-RSFT", BLUE, "D"),
    "exp_rsft_trajectory": Method("Exp-RSFT, trajectory level", BLUE, "X", dashed=True),
    "top_rated": Method("Top-rated", GREEN, "^"),
    "dpo": Method("DPO", VERMILLION, "v"),
    "dpo_paper": Method("DPO, paper-like", VERMILLION, "v", dashed=True),
    "ppo": Method("PPO", PURPLE, "P"),
    "ppo_paper": Method("PPO, paper-like", PURPLE, "P", dashed=True),
    "tilt_item": Method("Tilt by item mean", SKY, "h"),
    "tilt_rm": Method("Tilt by reward model", SKY, "p", dashed=True),
    "exp_rsft_permuted": Method("Exp-RSFT, permuted rewards", NAVY, "<"),
    "exp_rsft_item_mean": Method("Exp-RSFT, item-mean rewards", NAVY, ">"),
    "exp_rsft_predicted": Method("Exp-RSFT, predicted rewards", NAVY, "d", dashed=True),
    "exp_rsft_advantage": Method("Exp-RSFT, rewards above V(s)", NAVY, "H", dashed=True),
    "exp_rsft_at_rsft_ess": Method("Exp-RSFT at RSFT's ESS", NAVY, "*", dashed=True),
}
"""In the order of presentation."""


def method(arm: str) -> Method:
    """How an arm is shown; one without an entry by its own name, in grey."""
    return METHODS.get(arm, Method(arm, GREY, "."))


def title(arm: str) -> str:
    """What an arm is called."""
    return method(arm).title


def ordered(arms: Iterable[str]) -> list[str]:
    """Arms in the order of presentation, those without an entry last."""
    names = list(arms)
    return [arm for arm in METHODS if arm in names] + [arm for arm in names if arm not in METHODS]
