"""Event logs of the simulated world, in chunks of users whose steps are taken together.

Users are ordered by the length of their history, cut into chunks, and chunks into parts, one file each. Every random
number belongs to a chunk, a user or a state, so a log depends on its settings alone: never on who simulates which part,
or when. A chunk is all that is in memory.

Shape legend: B users of a chunk, longest first, T their steps, E events of the chunk, user after user.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retilt import storage
from retilt.data import draws
from retilt.data.draws import Draws, Floats
from retilt.data.presets import DAY, FIRST_DAY, Pace, Preset, Reward
from retilt.data.world import REWARD_MAX, Behaviour, Ints, Parameters, World

CHUNK_USERS = 1 << 10
"""Users of a chunk: their probabilities of the clusters then fit into a processor's cache."""
CHUNK_CELLS = 1 << 21
"""Most of users × steps of a chunk, unless one user alone has more."""
PART_EVENTS = 1 << 20
"""Events from which on a file is closed."""
ROW_GROUP = 1 << 18
TRIES = (2, 8, 32)
"""Candidates drawn at once for a user who has had the first; the last number is repeated until one is new."""
_CHOICES, _TIMES, _NOISE, _BURSTS = range(101, 105)
"""What a random number is for; a part of its key, apart from those of the world."""

SCHEMA = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        pa.field("item", pa.int64(), nullable=False),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("time", pa.int64(), nullable=False),
    ]
)
TRUTH = (
    pa.field("true_reward", pa.float64(), nullable=False),
    pa.field("log_propensity", pa.float64(), nullable=False),
)
"""Mean of the reward given state and item, before noise, rounding and cutting; log-probability of the choice."""


@dataclass(frozen=True)
class Chunk:
    """Users that are simulated together."""

    number: int
    user_B: Ints
    length_B: Ints


@dataclass(frozen=True)
class Part:
    """The chunks of one file."""

    number: int
    chunks: tuple[Chunk, ...]

    @property
    def users(self) -> int:
        return sum(len(each.user_B) for each in self.chunks)

    @property
    def events(self) -> int:
        return sum(int(each.length_B.sum()) for each in self.chunks)


def plan(length_U: Ints) -> list[Part]:
    """The parts of a log whose users have so many events each."""
    order_U = np.argsort(-length_U, kind="stable")
    parts: list[Part] = []
    chunks: list[Chunk] = []
    first = number = events = 0
    while first < len(order_U):
        longest = int(length_U[order_U[first]])
        user_B = order_U[first : first + max(1, min(CHUNK_USERS, CHUNK_CELLS // longest))]
        chunks.append(Chunk(number, user_B, length_U[user_B]))
        first, number, events = first + len(user_B), number + 1, events + int(length_U[user_B].sum())
        if events >= PART_EVENTS or first == len(order_U):
            parts.append(Part(len(parts), tuple(chunks)))
            chunks, events = [], 0
    return parts


@lru_cache(maxsize=1)
def world_of(parameters: Parameters, seed: int) -> World:
    """A world; a process that simulates several parts of a log makes it once."""
    return World(parameters, seed)


@dataclass(frozen=True)
class Summary:
    """Of the events of one file."""

    users: int
    events: int
    reward_sum: float
    reward_min: float
    reward_max: float


def write(uri: str, preset: Preset, part: Part, seed: int, truth: bool) -> Summary:
    """Simulate one part into the Parquet file ``uri``; ``truth`` adds the columns TRUTH."""
    world = world_of(preset.world, seed)
    schema = pa.schema([*SCHEMA, *TRUTH]) if truth else SCHEMA
    rewards, pending = np.array([0.0, np.inf, -np.inf]), []
    with (
        storage.open_output(uri) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", write_page_checksum=True, use_dictionary=["user", "item", "reward"]
        ) as writer,
    ):
        for chunk in part.chunks:
            events = simulate(world, preset, chunk, truth)
            reward_E = events["reward"]
            rewards[0] += reward_E.sum(dtype=np.float64)
            rewards[1:] = min(rewards[1], reward_E.min()), max(rewards[2], reward_E.max())
            pending.append(pa.table(events, schema=schema))
            if sum(map(len, pending)) >= ROW_GROUP or chunk is part.chunks[-1]:
                writer.write_table(pa.concat_tables(pending), row_group_size=ROW_GROUP)
                pending = []
    return Summary(part.users, part.events, *rewards.tolist())


def simulate(world: World, preset: Preset, chunk: Chunk, truth: bool = False) -> dict[str, Any]:
    """The events of a chunk by column, shape (E,), each user's in the order of time."""
    item_TB, mean_TB, noise_TB, log_prob_TB = _choose(world, preset.once, chunk, truth)
    there_BT = np.arange(len(item_TB)) < chunk.length_B[:, None]
    item_E = item_TB.T[there_BT].astype(np.int64)
    time_E, session_E = _times(preset.pace, chunk, world.seed)
    user_E = np.repeat(chunk.user_B, chunk.length_B)
    sd_E = world.noise_sd(item_E)
    if world.parameters.noise == "frozen":
        noise_E = noise_TB.T[there_BT]
    elif world.parameters.noise == "burst":
        noise_E = sd_E * draws.normal(draws.hashed(world.seed, _BURSTS, user_E, session_E))
    else:
        noise_E = sd_E * Draws(world.seed, _NOISE, chunk.number).normal(len(item_E))
    reward_E, mean_E = _rewards(preset.reward, mean_TB.T[there_BT], noise_E, sd_E)
    events = {"user": user_E, "item": item_E, "reward": reward_E.astype(np.float32), "time": time_E}
    if truth:
        events |= {"true_reward": mean_E, "log_propensity": log_prob_TB.T[there_BT]}
    return events


def _choose(world: World, once: bool, chunk: Chunk, truth: bool) -> tuple[Any, Floats, Floats, Floats]:
    """Items, r*, frozen noise and log-propensities, each (T, B): what depends on the state at each step."""
    stream = Draws(world.seed, _CHOICES, chunk.number)
    shape = (int(chunk.length_B[0]), len(chunk.user_B))
    item_TB = np.empty(shape, dtype=np.int32)
    mean_TB, noise_TB, log_prob_TB = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    had_BC = np.zeros((shape[1], len(world.log_mass_C)))  # popularity within each cluster of what a user has had
    state = world.start(chunk.user_B)
    for step, users in enumerate(np.searchsorted(-chunk.length_B, -np.arange(shape[0])).tolist()):
        state = state.first(users)
        behaviour = world.behaviour(state)
        item_B = _draw(behaviour, stream, item_TB[: step if once else 0, :users])
        item_TB[step, :users] = item_B
        mean_TB[step, :users] = world.reward(state, item_B)
        if world.parameters.noise == "frozen":
            noise_TB[step, :users] = world.frozen_noise(state, item_B)
        if truth:
            log_prob_TB[step, :users] = behaviour.log_prob(item_B)
        if truth and once:
            log_prob_TB[step, :users] -= np.log1p(-behaviour.mean(had_BC[:users]))
            had_BC[np.arange(users), world.cluster_V[item_B]] += np.exp(world.log_within_V[item_B])
        state = world.advance(state, item_B)
    return item_TB, mean_TB, noise_TB, log_prob_TB


def _draw(behaviour: Behaviour, stream: Draws, had_TB: Any) -> Ints:
    """One item per state, none of those in the state's column of ``had_TB``; shape (B,)."""

    def candidates(state: Ints) -> Ints:
        return behaviour.sample(state, stream.uniform(len(state)), stream.uniform(len(state)))

    item_B = candidates(np.arange(had_TB.shape[1]))
    left_L = np.flatnonzero((had_TB == item_B.astype(np.int32)).any(axis=0))
    for tries in itertools.chain(TRIES, itertools.repeat(TRIES[-1])):
        if not len(left_L):
            break
        candidate_KL = candidates(np.tile(left_L, tries)).reshape(tries, -1)
        new_KL = ~(had_TB[:, None, left_L] == candidate_KL.astype(np.int32)).any(axis=0)
        item_B[left_L] = candidate_KL[new_KL.argmax(axis=0), np.arange(len(left_L))]
        left_L = left_L[~new_KL.any(axis=0)]
    return item_B


def _times(pace: Pace, chunk: Chunk, seed: int) -> tuple[Ints, Ints]:
    """(seconds since 1970, number of the user's session) of each event, shape (E,)."""
    stream = Draws(seed, _TIMES, chunk.number)
    users, unit = len(chunk.user_B), pace.resolution
    first_B = np.cumsum(chunk.length_B) - chunk.length_B
    user_E = np.repeat(np.arange(users), chunk.length_B)
    kind_E, spread_E = stream.uniform(len(user_E)), stream.normal(len(user_E))
    returns_B, start_B = stream.uniform(users) < pace.returning, stream.uniform(users) * 365 * DAY
    paused_E = (kind_E >= 1 - pace.paused) & returns_B[user_E]
    paused_E[first_B] = False
    pause_E = np.where(paused_E, pace.pause[0] * np.exp(pace.pause[1] * spread_E), 0.0)
    pause_E *= np.minimum(1, pace.span / np.maximum(np.add.reduceat(pause_E, first_B), 1))[user_E]
    shortest, median, sd = pace.gap
    within_E = np.where(kind_E < pace.tied, 0.0, shortest + median * np.exp(sd * spread_E))
    within_E[first_B] = 0
    gap_E = np.ceil(np.where(paused_E, pause_E, within_E) / unit).astype(np.int64) * unit
    elapsed_E, session_E = np.cumsum(gap_E), np.cumsum(paused_E)
    origin_B = (FIRST_DAY + start_B).astype(np.int64) // unit * unit - elapsed_E[first_B]
    return origin_B[user_E] + elapsed_E, session_E - session_E[first_B][user_E]


def _rewards(kind: Reward, mean_E: Floats, noise_E: Floats, sd_E: Floats) -> tuple[Floats, Floats]:
    """(reward, its mean before rounding and cutting) from r* and noise, shape (E,)."""
    if kind == "stars":
        return np.clip(np.rint(1 + mean_E + noise_E), 1, 1 + REWARD_MAX), 1 + mean_E
    if kind == "hours":
        return mean_E * np.exp(noise_E - sd_E**2 / 2), mean_E
    return mean_E + noise_E, mean_E
