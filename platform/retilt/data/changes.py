"""What a control does to the rewards of training events, or to which users there are: see ``derive``.

Each change gives a function from the training events of a row group to their new rewards; row groups come in their
order, so a function may count. Letters: U users of a row group, E their events, M its training events, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from retilt.data import draws
from retilt.data.collate import CUT, Rows, ragged
from retilt.data.dataset import Dataset
from retilt.data.split import before, bounds_array
from retilt.settings import Settings
from retilt.types import InputError

Floats = npt.NDArray[np.float64]
Protocol = Literal["select", "refit"]


@dataclass(frozen=True)
class Group:
    """A row group, and which of its events (E,) are training events."""

    rows: Rows
    training_E: npt.NDArray[np.bool_]
    place: str
    """What errors call it."""

    @classmethod
    def of(cls, dataset: Dataset, number: int, table: Any, protocol: Protocol) -> Group:
        """Row group ``number`` of all, from the table that ``Dataset.read`` gave."""
        group = dataset.row_groups[number]
        rows = Rows.of(table, group.first)
        training_E = before(bounds_array(rows.length, dataset.k)[CUT[protocol]], rows.length)
        return cls(rows, training_E, f"{dataset.manifest['shards'][group.shard]['path']}, row group {group.number}")


def groups(dataset: Dataset, protocol: Protocol) -> Iterator[Group]:
    """Every row group in the manifest's order, one in memory at a time."""
    for number, group in enumerate(dataset.row_groups):
        yield Group.of(dataset, number, dataset.read(group.shard, group.number), protocol)


Rewards = Callable[[Group], npt.NDArray[np.floating[Any]]]
"""From a row group to the new rewards of its training events, (M,)."""


class Kept(Settings):
    """Base of the changes: every user stays, with the rewards as they are."""

    def rewards(self, dataset: Dataset, protocol: Protocol, seed: int) -> Rewards:
        """What gives the new rewards."""
        return lambda group: group.rows.reward[group.training_E]

    def users(self, seed: int, example_U: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which users stay, by their global row numbers."""
        return np.ones(len(example_U), dtype=bool)


class Permuted(Kept):
    """Rewards permuted across training events: they keep their distribution and say nothing of the items.

    Event i gets the σ(i)-th smallest of all training rewards, σ a permutation that the seed fixes: with levels in the
    manifest the very rewards there are, dealt anew; continuous ones are read off the manifest's 1,001 quantiles, one
    from each of n equal strata.
    """

    name: Literal["permuted"] = "permuted"

    def rewards(self, dataset: Dataset, protocol: Protocol, seed: int) -> Rewards:
        statistics = dataset.statistics(protocol)
        n, levels, dealt = int(statistics["events"]), statistics["levels"], 0

        def permuted(group: Group) -> Floats:
            nonlocal dealt
            place_M = draws.permuted(dealt + np.arange(group.training_E.sum()), n, seed)
            dealt += len(place_M)
            if levels is None:
                quantiles = statistics["quantiles"]
                read_off = np.interp((place_M + 0.5) / n, np.linspace(0, 1, len(quantiles)), quantiles)
                return np.asarray(read_off, dtype=np.float64)
            value_L, count_L = np.array(levels, dtype=np.float64).T
            return np.asarray(value_L[np.searchsorted(np.cumsum(count_L), place_M, side="right")])

        return permuted


class ItemMean(Kept):
    """The mean training reward of the event's item: all that is known of an item, nothing of who chose it and when."""

    name: Literal["item_mean"] = "item_mean"
    strength: float = Field(10.0, ge=0, allow_inf_nan=False)
    """Events of mean reward that shrink an item's mean; at 0 an item's only event would keep its own reward."""

    def rewards(self, dataset: Dataset, protocol: Protocol, seed: int) -> Rewards:
        sum_V, count_V = np.zeros(dataset.items + 1), np.zeros(dataset.items + 1)
        for group in groups(dataset, protocol):
            item_M = group.rows.item[group.training_E]
            sum_V += np.bincount(item_M, group.rows.reward[group.training_E], minlength=len(sum_V))
            count_V += np.bincount(item_M, minlength=len(count_V))
        mean = sum_V.sum() / count_V.sum()
        # Items without a training event are never asked for; 1 keeps 0 / 0 from being worked out.
        mean_V = (sum_V + self.strength * mean) / np.maximum(count_V + self.strength, 1)
        return lambda group: mean_V[group.rows.item[group.training_E]]


class Noisy(Kept):
    """Independent Gaussian noise added to each training reward; not clipped, which would make its mean depend on r."""

    name: Literal["noisy"] = "noisy"
    sd: float = Field(gt=0, allow_inf_nan=False)
    """Standard deviation, in the unit of the reward."""

    def rewards(self, dataset: Dataset, protocol: Protocol, seed: int) -> Rewards:
        def noisy(group: Group) -> Floats:
            rows = group.rows
            example_E = np.repeat(rows.example, rows.length)
            place_E = ragged(np.zeros_like(rows.length), rows.length)
            word_M = draws.hashed(seed, example_E[group.training_E], place_E[group.training_E])
            return rows.reward[group.training_E] + self.sd * draws.normal(word_M)

        return noisy


class Thinned(Kept):
    """A share of the users, whole; the others are left out.

    Thinning each user's events instead would move the cuts of short users, and training would see shorter histories
    with longer gaps than evaluation: another task, not less data. With one seed, users that a smaller share keeps are
    kept by a larger one. Evaluate on the original data set, which has the held-out events of all users.
    """

    name: Literal["thinned"] = "thinned"
    share: float = Field(gt=0, lt=1)
    """Share of the users that stay, each with this probability."""

    def users(self, seed: int, example_U: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        word_U = draws.hashed(seed, example_U)
        return np.asarray((word_U >> np.uint64(11)) * 2.0**-53 < self.share, dtype=np.bool_)


class Replaced(Kept):
    """Rewards from elsewhere: predicted by a reward model, or r − V̂(s). ``derive`` takes them as ``replacements``."""

    name: Literal["replaced"] = "replaced"
    by: str = Field(min_length=1)
    """Identity of what made them, for example the reward model's fingerprint: other values need another one."""


Change = Annotated[Permuted | ItemMean | Noisy | Thinned | Replaced, Field(discriminator="name")]


def from_elsewhere(replacements: Iterator[npt.ArrayLike]) -> Rewards:
    """Rewards that come as one array (E,) a row group, in the order of the row groups; NaN keeps the event's own.

    Raises:
        InputError: an array is missing or of another length; names the row group.
    """

    def replaced(group: Group) -> Floats:
        new_E = np.asarray(next(replacements, ()), dtype=np.float64)
        if new_E.shape != group.training_E.shape:
            raise InputError(
                f"{group.place}: {len(group.training_E):,} events, but rewards of shape {new_E.shape} to replace theirs"
            )
        new_M = new_E[group.training_E]
        return np.where(np.isnan(new_M), group.rows.reward[group.training_E], new_M)

    return replaced
