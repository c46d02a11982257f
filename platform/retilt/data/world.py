"""The simulated world: who chooses what, and what it is worth to them, both known exactly.

A state s is a user with a history. With u the taste, share(c) the share of cluster c among the latest choices (older
ones count ``memory`` times less with each choice), w the popularity of an item a of cluster c, and W the sum of w over
the cluster:

    π_β(a | s) = softmax over clusters of (affinity · u·m_c + log W_c + recency · share(c)) × w_a / W_c
    r*(s, a)   = 4 σ(quality_a + bias + u·m_c + u·v_a)

so π_β has full support, exact probabilities and costs one softmax over the clusters, whatever the catalogue. A choice
draws the taste towards its cluster, u ← (1 − drift) u + drift (home + m_c), where home is the taste at the start.

Popularity follows a Zipf–Mandelbrot law, w = (rank + offset)^−exponent. Quality correlates with it (``correlation``),
and ``clickbait`` items are shown more and are worth less, so that what is chosen is not missing at random.

Shape legend: B states, C clusters, D width of the taste, V items of a tile or of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from retilt.data import draws
from retilt.data.draws import Draws, Floats
from retilt.data.hashing import U64

REWARD_MAX = 4.0
"""r* lies between 0 and this."""
RARE_SD = 0.3
"""SD of the noise of the most popular item under ``rare``."""
Noise = Literal["fresh", "frozen", "rare", "burst"]
Ints = npt.NDArray[np.int64]

_RANKS, _CLICKBAIT, _QUALITY, _CLUSTERS, _ITEMS, _USERS, _FROZEN = range(7)
"""What a random number is for; a part of its key."""


@dataclass(frozen=True)
class Parameters:
    """What makes a world what it is, with its seed."""

    items: int
    """At least 2, below 2³¹."""
    exponent: float
    """Of the popularity law; greater: more of the choices go to few items."""
    offset: float
    """Of the popularity law: about so many items share the top."""
    quality_mean: float
    """Mean quality by popularity, clickbait apart, in the logits of r*."""
    quality_sd: float = 0.7
    correlation: float = 0.4
    """Of quality and log popularity, clickbait apart."""
    clickbait: float = 0.05
    """Share of the items that are shown more, and are worth less, than they deserve."""
    exposure: float = 2.0
    """Added to the log popularity of clickbait before the catalogue is ranked."""
    regret: float = 1.5
    """Taken off its quality."""
    bias_sd: float = 0.5
    """SD of how kindly users judge, in the logits of r*."""
    preference_sd: float = 0.35
    """SD of u·m_c over users and clusters."""
    interest_sd: float = 0.2
    """SD of u·v_a over users and items."""
    affinity: float = 4.0
    """How much of a preference shows in the choices."""
    recency: float = 2.0
    """Logits that a cluster gains which had all of the latest choices."""
    memory: float = 0.8
    """What a choice counts for in the shares after one more choice."""
    drift: float = 0.02
    """How far a choice draws the taste."""
    noise: Noise = "fresh"
    """``fresh``: drawn for each event. ``frozen``: a function of state and item. ``rare``: fresh, of SD RARE_SD +
    noise_sd · rank / items. ``burst``: shared by the events of a session."""
    noise_sd: float = 0.5
    clusters: int = 256
    width: int = 8


@dataclass(frozen=True)
class State:
    """B users with their histories; ``World.start`` makes them, ``World.advance`` adds a choice to each."""

    id_B: U64
    """Of the state: what differs in anything that π_β or r* depends on differs here."""
    bias_B: Floats
    home_BD: Floats
    taste_BD: Floats
    share_BC: Floats

    def first(self, states: int) -> State:
        """The first states of the batch."""
        return State(*(getattr(self, each.name)[:states] for each in fields(self)))


class World:
    """Items, clusters and users drawn from a seed. Holds D + 6 numbers an item, and nothing of a user."""

    def __init__(self, parameters: Parameters, seed: int) -> None:
        self.parameters, self.seed = parameters, seed
        items, width = parameters.items, parameters.width
        clusters = min(parameters.clusters, items)
        edge_C1 = np.arange(clusters + 1) * items // clusters
        self.cluster_V = np.repeat(np.arange(clusters, dtype=np.int32), np.diff(edge_C1))
        """Cluster of each item; those of a cluster are neighbours."""
        weight_V, appeal_V, clickbait_V = self._popularity()
        self.edge_C1 = edge_C1
        self.cumulative_V1 = np.concatenate(([0.0], np.cumsum(weight_V)))
        """Popularity of all items before each, together 1."""
        self.log_mass_C = np.log(np.add.reduceat(weight_V, edge_C1[:-1]))
        self.log_within_V = np.log(weight_V) - self.log_mass_C[self.cluster_V]
        """log w_a / W_c."""
        noise_V = Draws(seed, _QUALITY).normal(items)
        rho, standard_V = parameters.correlation, _standardised(appeal_V)
        # Centred on what is chosen: otherwise rewards would rise with the size of the catalogue.
        standard_V -= (weight_V * standard_V).sum()
        self.quality_V = (
            parameters.quality_mean
            + parameters.quality_sd * (rho * standard_V + np.sqrt(1 - rho**2) * noise_V)
            - parameters.regret * clickbait_V
        )
        scale = width**-0.5
        center_DC = Draws(seed, _CLUSTERS).normal(width * clusters).reshape(width, clusters)
        self.center_DC = parameters.preference_sd * scale * center_DC
        # Single precision: the largest array of the world, and part of the definition of r* as it is.
        self.interest_VD = np.empty((items, width), dtype=np.float32)
        block, stream = 1 << 16, Draws(seed, _ITEMS)
        for first in range(0, items, block):
            part = self.interest_VD[first : first + block]
            part[:] = parameters.interest_sd * scale * stream.normal(part.size).reshape(part.shape)

    def _popularity(self) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """(w, log popularity before exposure, clickbait or not) of the items."""
        parameters, items = self.parameters, self.parameters.items
        law_V = -parameters.exponent * np.log(np.arange(items) + parameters.offset)
        appeal_V = law_V[_ranks(-Draws(self.seed, _RANKS).uniform(items))]
        clickbait_V = Draws(self.seed, _CLICKBAIT).uniform(items) < parameters.clickbait
        # Ranked again, so that the catalogue keeps its law whatever the exposure.
        self.rank_V = _ranks(-(appeal_V + parameters.exposure * clickbait_V))
        """Rank of each item by popularity, 0 for the most popular."""
        weight_V = np.exp(law_V - law_V[0])[self.rank_V]
        return weight_V / weight_V.sum(), appeal_V, clickbait_V

    def noise_sd(self, item: Ints) -> Floats:
        """SD of the noise in the reward of each item; under ``rare`` it grows with the item's rank by popularity."""
        if self.parameters.noise != "rare":
            return np.full(item.shape, self.parameters.noise_sd)
        return np.asarray(RARE_SD + self.parameters.noise_sd * self.rank_V[item] / self.parameters.items)

    def start(self, user_B: Ints) -> State:
        """The states of users without history; a user is the same whoever else is in the batch."""
        width = self.parameters.width
        drawn = draws.normal(draws.hashed(self.seed, _USERS, user_B[:, None], np.arange(width + 1)))
        taste_BD = np.ascontiguousarray(drawn[:, :width])
        return State(
            draws.hashed(self.seed, _USERS, user_B),
            self.parameters.bias_sd * drawn[:, width],
            taste_BD,
            taste_BD,
            np.zeros((len(user_B), len(self.log_mass_C))),
        )

    def advance(self, state: State, item_B: Ints) -> State:
        """The states after each user has chosen an item."""
        parameters, cluster_B = self.parameters, self.cluster_V[item_B]
        share_BC = state.share_BC * parameters.memory
        share_BC[np.arange(len(item_B)), cluster_B] += 1 - parameters.memory
        drawn_BD = state.home_BD + self.center_DC.T[cluster_B]
        taste_BD = (1 - parameters.drift) * state.taste_BD + parameters.drift * drawn_BD
        # Where choices leave no trace, a user stays in one state, and frozen noise the same for an item chosen again.
        moves = parameters.drift > 0 or parameters.recency != 0
        id_B = draws.hashed(self.seed, state.id_B, item_B) if moves else state.id_B
        return State(id_B, state.bias_B, state.home_BD, taste_BD, share_BC)

    def behaviour(self, state: State) -> Behaviour:
        """π_β in these states."""
        return Behaviour(self, self._preference_BC(state), state.share_BC)

    def reward(self, state: State, item_B: Ints) -> Floats:
        """r* of one item per state, shape (B,)."""
        cluster_BD = self.center_DC.T[self.cluster_V[item_B]]
        preference_B = np.einsum("bd,bd->b", state.taste_BD, cluster_BD + self.interest_VD[item_B])
        return _reward(self.quality_V[item_B] + state.bias_B + preference_B)

    def reward_tile(self, state: State, first: int, stop: int) -> Floats:
        """r* of the items ``first … stop − 1`` in each state, shape (B, V)."""
        preference_BV = self._preference_BC(state)[:, self.cluster_V[first:stop]]
        interest_BV = np.einsum("bd,vd->bv", state.taste_BD, self.interest_VD[first:stop])
        return _reward(self.quality_V[first:stop] + state.bias_B[:, None] + preference_BV + interest_BV)

    def frozen_noise(self, state: State, item: Ints) -> Floats:
        """Noise that state and item determine, of SD ``noise_sd``.

        ``item`` of shape (B,) is one item per state, of shape (1, V) each of those items in each state.
        """
        id = state.id_B if item.ndim == 1 else state.id_B[:, None]
        return self.parameters.noise_sd * draws.normal(draws.hashed(self.seed, _FROZEN, id, item))

    def _preference_BC(self, state: State) -> Floats:
        # Not a matrix product, here or anywhere in a log's making: BLAS's last digits depend on its threads.
        return np.asarray(np.einsum("bd,dc->bc", state.taste_BD, self.center_DC))


class Behaviour:
    """π_β in B states."""

    def __init__(self, world: World, preference_BC: Floats, share_BC: Floats) -> None:
        self._world = world
        self._logit_BC = world.parameters.affinity * preference_BC
        self._logit_BC += world.log_mass_C
        self._logit_BC += world.parameters.recency * share_BC
        self._mass_BC = np.exp(self._logit_BC - self._logit_BC.max(axis=1, keepdims=True))

    @cached_property
    def _cumulative(self) -> Floats:
        """Row b ends at b + 1, so that one search finds the cluster for any of the states."""
        cumulative_BC = np.cumsum(self._mass_BC, axis=1)
        cumulative_BC /= cumulative_BC[:, -1:].copy()
        cumulative_BC += np.arange(len(cumulative_BC))[:, None]
        return cumulative_BC.ravel()

    def sample(self, state: Ints, cluster: Floats, within: Floats) -> Ints:
        """Items drawn in the states of these numbers, from two numbers in [0, 1) each; all of one shape."""
        world, clusters = self._world, self._mass_BC.shape[1]
        found = np.searchsorted(self._cumulative, state + cluster, side="right") - state * clusters
        # Rounding may put a place on the far edge of its row, and below on that of its cluster.
        drawn = np.minimum(found, clusters - 1)
        first, end = world.edge_C1[drawn], world.edge_C1[drawn + 1]
        low, high = world.cumulative_V1[first], world.cumulative_V1[end]
        item = np.searchsorted(world.cumulative_V1, low + within * (high - low), side="right") - 1
        return np.asarray(np.clip(item, first, end - 1), dtype=np.int64)

    def log_prob(self, item_B: Ints) -> Floats:
        """log π_β of one item per state, shape (B,)."""
        cluster_B = self._world.cluster_V[item_B]
        chosen_B = self._logit_BC[np.arange(len(item_B)), cluster_B]
        return np.asarray(chosen_B - self._log_normaliser_B + self._world.log_within_V[item_B])

    def log_prob_tile(self, first: int, stop: int) -> Floats:
        """log π_β of the items ``first … stop − 1`` in each state, shape (B, V)."""
        chosen_BV = self._logit_BC[:, self._world.cluster_V[first:stop]]
        return np.asarray(chosen_BV - self._log_normaliser_B[:, None] + self._world.log_within_V[first:stop])

    def mean(self, value_BC: Floats) -> Floats:
        """Mean under π_β of a value that each cluster has, shape (B,)."""
        return np.asarray(np.einsum("bc,bc->b", self._mass_BC, value_BC) / self._mass_BC.sum(axis=1))

    @cached_property
    def _log_normaliser_B(self) -> Floats:
        return np.asarray(self._logit_BC.max(axis=1) + np.log(self._mass_BC.sum(axis=1)))


def _reward(logit: Floats) -> Floats:
    return np.asarray(REWARD_MAX / (1 + np.exp(-logit)))


def _ranks(value_V: Floats) -> Ints:
    """Place of each value in ascending order."""
    rank_V = np.empty(len(value_V), dtype=np.int64)
    rank_V[np.argsort(value_V, kind="stable")] = np.arange(len(value_V))
    return rank_V


def _standardised(value_V: Floats) -> Floats:
    spread = float(value_V.std())  # 0 in a world where all are equally popular
    return np.asarray((value_V - value_V.mean()) / (spread or 1.0))
