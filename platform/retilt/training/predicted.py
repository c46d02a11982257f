"""Training rewards made by a reward model, on this rank's share of the users: the data sets of two controls.

    predicted   r̂(s, a) of the logged item, in place of the reward that was observed there
    advantage   r − V̂(s),  V̂(s) = 1/K · Σ_k r̂(s, a_k),  a_1 … a_K ~ π(· | s) without the items of the window before

Exp-RSFT weights by exp(r̂/λ) on the first, as if the reward model were to be believed where it was fitted, and by
exp((r − V̂(s))/λ) on the second, which takes out of eq. 11 of arXiv:2603.10279 that contexts of high rewards count for
more. They are asked at the positions that a run trains on, after the window that it sees; other events are no targets
and keep their rewards. Predictions are as they are: nothing keeps them within the range of the rewards.

Letters: E events of a row group, W of them within the windows, P positions of a batch, K draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retilt import artifact, ranks, storage
from retilt.config import model_of, place_table
from retilt.data.changes import Floats, Protocol, Replaced
from retilt.data.collate import CUT, Ints, Rows, ragged, trained, training_batch
from retilt.data.dataset import Dataset
from retilt.data.derive import derive
from retilt.data.split import bounds_array
from retilt.evaluation import positions
from retilt.ranks import together
from retilt.training import checkpoint, parallel
from retilt.training.companions import load_policy, load_reward_model
from retilt.types import Batch, ExactPolicy, Reporter, RewardModel

DRAWS = 4
"""K, as many as PPO takes."""
USERS = 32
"""Users of a batch, whatever the number of ranks."""


def work(arguments: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Write the data set, unless it is there; whole or not at all. Collective.

    A ``Work`` of ``cluster.workers.on_workers``. ``arguments``:

    - ``dataset``, ``output``: URIs of the original data set and of a folder, new or empty;
    - ``reward_model``: checkpoint of r̂ (``training.run.find_reward_model``);
    - ``policy``: checkpoint of π; None for predicted rewards in place of advantages;
    - ``protocol``: which events are training events, ``select`` or ``refit``;
    - ``seed``: of the draws;
    - ``table``, ``device``: as in the configuration of a run.
    """
    output, device = arguments["output"], parallel.choose_device(arguments["device"])
    if ranks.broadcast_object(together(lambda: storage.exists(storage.join(output, artifact.MANIFEST)))):
        return {}
    dataset, seed = Dataset.open(arguments["dataset"]), arguments["seed"]
    together(lambda: dataset.verify_share(ranks.rank(), ranks.world()))
    placement = place_table(arguments["table"], dataset.items)
    place, protocol = arguments["reward_model"], arguments["protocol"]
    model = load_reward_model(place, dataset, device, placement)
    by, reward = f"predicted by {checkpoint.fingerprint(place)}", partial(predicted, model)
    if arguments["policy"] is not None:
        policy = load_policy(arguments["policy"], dataset, device, placement).eval()
        by = f"advantage {by}, {DRAWS} draws of {checkpoint.fingerprint(arguments['policy'])}"
        reward = partial(advantage, model, policy, seed)
    window = model_of(checkpoint.read_state(place), place).max_length
    rewards = replacements(dataset, protocol, window, reward, device)
    if ranks.rank() == 0:
        derive(arguments["dataset"], output, Replaced(by=by), seed, protocol, rewards)
    else:
        for _ in rewards:
            pass
    return {}


def predicted(model: RewardModel, batch: Batch) -> Tensor:
    """r̂ of the batch's targets, (P,). Collective."""
    return model.score(batch, batch.target_item_P[:, None])[:, 0]


def advantage(model: RewardModel, policy: ExactPolicy, seed: int, batch: Batch) -> Tensor:
    """Reward of the batch's targets less the mean r̂ of what ``policy`` draws in their place, (P,). Collective.

    The draws follow from the seed, the user and the number of the target among the user's.
    """
    key_P = (positions.keys(batch, seed) & 0x7FFFFFFF).to(torch.int32).to(batch.item_BT.device)
    item_PK = policy.exact(batch).sample(DRAWS, key_P, *batch.history())
    return batch.target_reward_P - model.score(batch, item_PK).mean(1)


@torch.no_grad()
def replacements(
    dataset: Dataset, protocol: Protocol, max_length: int, reward: Callable[[Batch], Tensor], device: torch.device
) -> Iterator[Floats]:
    """New rewards (E,) of each row group's events, in their order, for ``data.derive``; equal on all ranks. Collective.

    NaN: an event that is no trained position. The users of a row group are shared out among the ranks in batches that
    do not depend on how many there are.

    Args:
        dataset: the original.
        protocol: which events are training events.
        max_length: N, of the window that is trained on.
        reward: of a batch on ``device`` to the new rewards of its targets, (P,); collective.
        device: where it computes, and where ranks are summed.

    Raises:
        InputError: a damaged shard.
    """
    for number in range(len(dataset.row_groups)):
        rows = together(partial(_rows, dataset, number))
        window = trained(rows, dataset.k, protocol, max_length)
        value_W = np.zeros(len(window.item))
        for user_B in _batches(window.length)[ranks.rank() :: ranks.world()]:
            event_P = ragged(window.start[user_B] + 1, window.length[user_B] - 1)
            value_W[event_P] = reward(training_batch(window, user_B).to(device)).double().cpu().numpy()
        value_W = ranks.sum_(torch.from_numpy(value_W).to(device)).cpu().numpy()
        value_W[window.start] = np.nan
        new_E = np.full(len(rows.item), np.nan)
        end_U = rows.start + bounds_array(rows.length, dataset.k)[CUT[protocol]]
        new_E[ragged(end_U - window.length, window.length)] = value_W
        yield new_E


def _rows(dataset: Dataset, number: int) -> Rows:
    group = dataset.row_groups[number]
    return Rows.of(dataset.read(group.shard, group.number), group.first)


def _batches(length_U: Ints) -> list[npt.NDArray[np.int64]]:
    """Users with a position in batches of similar length; empty ones at the end, so that each rank has as many."""
    order = np.argsort(length_U, kind="stable")
    having = order[length_U[order] > 1]
    found = np.array_split(having, max(1, -(-len(having) // USERS)))
    return found + [having[:0]] * (-len(found) % ranks.world())
