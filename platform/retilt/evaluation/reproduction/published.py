"""What arXiv:2603.10279v1 itself reports, and where it contradicts itself. Figures are the paper's, never ours.

They are not comparable with ours: see ``CAVEAT``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CAVEAT = (
    "The paper's figures come from one run each, without intervals; its split, model size, optimizer, softmax and "
    "history masking are not stated, and it chose its settings by an unstated protocol. Compare directions, not values."
)

COLUMNS = ("ndcg@10", "ndcg@50", "hr@10", "hr@50", "mrr", "avg_reward")


@dataclass(frozen=True)
class Published:
    """A data set of the paper."""

    name: str
    table: int
    """Number of the table with its recommendation metrics."""
    sizes: tuple[str, str, str, str] | None
    """Table 1: users, items, interactions a user, test targets rated ≥ 4.5."""
    errors: Mapping[str, Mapping[str, float]]
    """Table 2: error → predictor → value."""
    metrics: Mapping[str, tuple[float, ...]]
    """Tables 3–5: arm → ``COLUMNS``; of Table 6 per cent of change from RSFT."""


def _errors(*rows: tuple[float, float, float, float]) -> dict[str, dict[str, float]]:
    predictors = ("user_mean", "item_mean", "global_mean", "reward_model")
    return {name: dict(zip(predictors, row, strict=True)) for name, row in zip(("mse", "mae"), rows, strict=True)}


PUBLISHED = {
    "ml-1m": Published(
        "ML-1M",
        3,
        ("6,040", "3,706", "165.60", "1,530"),
        _errors((1.0784, 0.9179, 1.2394, 1.2166), (0.8232, 0.7619, 0.9268, 0.8680)),
        {
            "bc": (0.1304, 0.1866, 0.2405, 0.4967, 0.1116, 3.8672),
            "dpo": (0.0091, 0.0231, 0.0163, 0.0824, 0.0122, 3.3737),
            "ppo": (0.0303, 0.0617, 0.0673, 0.2124, 0.0285, 4.4775),
            "rsft": (0.1437, 0.2003, 0.2608, 0.5163, 0.1230, 3.6558),
            "exp_rsft": (0.1465, 0.2029, 0.2712, 0.5261, 0.1235, 3.6933),
        },
    ),
    "ml-20m": Published(
        "ML-20M",
        4,
        ("138,493", "26,744", "144.41", "40,667"),
        _errors((0.9550, 0.8898, 1.0939, 0.8963), (0.7588, 0.7320, 0.8423, 0.7307)),
        {
            "bc": (0.1753, 0.2313, 0.3035, 0.5569, 0.1510, 3.7388),
            "dpo": (0.0196, 0.0342, 0.0372, 0.1052, 0.0195, 4.4008),
            "ppo": (0.1164, 0.1688, 0.2141, 0.4536, 0.1008, 3.7547),
            "rsft": (0.1847, 0.2403, 0.3161, 0.5677, 0.1593, 3.7904),
            "exp_rsft": (0.1912, 0.2462, 0.3238, 0.5726, 0.1651, 3.8611),
        },
    ),
    "amazon-books": Published(
        "Amazon Books",
        5,
        ("811,227", "695,762", "14.47", "424,271"),
        _errors((1.1578, 0.7290, 1.1868, 1.1067), (0.7411, 0.5651, 0.8636, 0.8140)),
        {
            "bc": (0.0328, 0.0478, 0.0589, 0.1279, 0.0296, 4.2824),
            "dpo": (0.0008, 0.0020, 0.0019, 0.0075, 0.0013, 4.8615),
            "ppo": (0.0094, 0.0156, 0.0184, 0.0469, 0.0088, 4.4549),
            "rsft": (0.0349, 0.0514, 0.0630, 0.1388, 0.0314, 4.3350),
            "exp_rsft": (0.0356, 0.0520, 0.0641, 0.1397, 0.0319, 4.3374),
        },
    ),
    "watch_time": Published(
        "Netflix",
        6,
        None,
        _errors((2.412, 2.568, 2.568, 2.486), (2.112, 2.442, 2.451, 1.916)),
        {
            "rsft": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            "exp_rsft": (106.20, 69.71, 98.07, 49.58, 86.31, 17.27),
            "dpo": (-99.30, -96.77, -99.14, -95.52, -95.34, 19.21),
            "ppo": (-4.88, -24.01, -14.66, -35.71, -8.60, 13.39),
        },
    ),
}
"""Preset → what the paper has nearest to it; ``watch_time`` is simulated, the paper's data there are Netflix's own."""

INCONSISTENCIES = (
    "Section 6 says that PPO and DPO reach the highest reward-model scores on all four data sets. In Table 3 DPO has "
    "the lowest (3.3737, BC 3.8672); in Table 4 PPO's 3.7547 is below RSFT's 3.7904 and Exp-RSFT's 3.8611; in Table 6 "
    "Exp-RSFT's +17.27% is above PPO's +13.39%. Only Table 5 agrees.",
    "Section 6 says that the reward model has the lowest MSE on Netflix. In Table 2 that is the user mean (2.412, "
    "reward model 2.486); the reward model is the lowest there in MAE (1.916).",
    "Section 6 says of the two cases in which the reward model is best that it is comparable to the item mean. On "
    "Netflix its MAE is 1.916 and the item mean's 2.442.",
    "The evolution of the metrics over epochs, and the λ sweep for the metrics other than NDCG@10, are referred to "
    "sections of the appendix that do not exist: “all five evaluation metrics” is not shown.",
    "Section 3.2 announces “an instance-dependent top-k recoverability guarantee under noisy rewards”; there is none.",
    "Theorem 4.4 bounds a loss, whereas section 6 reads it as a prediction of an inverted U: a bound that loosens as λ "
    "falls does not say that the policy gets worse.",
)
"""Read in the paper's own tables and text."""
