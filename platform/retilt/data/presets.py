"""What simulated logs resemble: the world's parameters, how active users are, and when they act.

``ratings`` was fitted to ml-1m, ``books`` to what is published of Amazon Books; docs/data.md compares. ``watch_time``
and ``theory`` resemble nothing in particular: the first has a positive, continuous reward, sessions and repeats, the
second what the paper's section 4 assumes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from retilt.data.draws import Draws, Floats
from retilt.data.world import Ints, Noise, Parameters
from retilt.types import InputError

DAY = 86_400
FIRST_DAY = 16_436 * DAY
"""2015-01-01, seconds since 1970."""
MOST_RATED = 0.6
"""Share of the catalogue that a user who chooses each item once may have; drawing the last ones would take for ever."""
_LENGTHS = 100
"""What the random numbers are for, apart from those of the world."""
_HALVINGS = 100
"""Of an interval of scales; no double lies between its ends afterwards."""


@dataclass(frozen=True)
class Activity:
    """Events of a user: ``fewest`` + scale · (U^−tail − 1)^(1 / shape), U uniform; Burr's law (1942), rounded down.

    The scale follows from the number of events.
    """

    fewest: int
    shape: float
    tail: float
    """Greater: a heavier tail, users of n events and more falling like n^(−shape / tail)."""

    def lengths(self, users: int, events: int, most: int, seed: int) -> Ints:
        """Events of each user, shape (users,), together exactly ``events``, each at most ``most``.

        Raises:
            InputError: there are too few or too many events for that.
        """
        if most < self.fewest:
            raise InputError(
                f"a user has at least {self.fewest} events and, with so few items that do not repeat, at most {most}; "
                "give more items, or preset=watch_time, in which they repeat"
            )
        if not users * self.fewest <= events <= users * most:
            raise InputError(
                f"events = {events:,} for users = {users:,}: each user has at least {self.fewest} and, with so many "
                f"items, at most {most:,}; give between {users * self.fewest:,} and {users * most:,} events"
            )
        drawn_U = 1 - Draws(seed, _LENGTHS).uniform(users)
        extra_U = (drawn_U**-self.tail - 1) ** (1 / self.shape)
        extra_U = np.maximum(extra_U, 1e-6)  # so that a scale exists for any number of events
        low, high = 0.0, float(most) / 1e-6
        for _ in range(_HALVINGS):
            scale = (low + high) / 2
            if self._at(scale, extra_U, most).sum() > events:
                high = scale
            else:
                low = scale
        length_U = self._at(low, extra_U, most)
        short = events - int(length_U.sum())
        room_U = np.flatnonzero(length_U < most)
        length_U[room_U[np.argsort(-extra_U[room_U] * low % 1, kind="stable")[:short]]] += 1
        return length_U

    def _at(self, scale: float, extra_U: Floats, most: int) -> Ints:
        return np.asarray(np.minimum(self.fewest + np.floor(np.minimum(scale * extra_U, most)), most), dtype=np.int64)


@dataclass(frozen=True)
class Pace:
    """Time between the events of a user, in seconds."""

    tied: float
    """Share of the events at the time of the one before."""
    paused: float
    """Share of the gaps of users who come back that part sessions; with ``tied`` at most 1."""
    returning: float
    """Share of the users who come back."""
    gap: tuple[float, float, float]
    """Within a session: shortest, and median and SD of the logarithm of what comes on top (log-normal)."""
    pause: tuple[float, float]
    """Between sessions: median and SD of the logarithm (log-normal)."""
    resolution: int = 1
    """Times are multiples of so many seconds."""
    span: int = 10 * 365 * DAY
    """A user whose events would take longer has all pauses shortened alike."""


Reward = Literal["stars", "hours", "plain"]


@dataclass(frozen=True)
class Preset:
    """A kind of log."""

    world: Parameters
    activity: Activity
    pace: Pace
    users: int
    events: int
    reward: Reward
    """``stars``: 1 + r* + noise, rounded and cut to 1 … 5. ``hours``: r* · exp(noise), of mean r*. ``plain``: r* +
    noise."""
    once: bool
    """A user chooses an item at most once: π_β without what the user has had."""

    def most(self, items: int) -> int:
        """Most events of a user in a catalogue of that size."""
        return int(MOST_RATED * items) if self.once else 1 << 31

    def sized(self, items: int, noise: Noise | None) -> Preset:
        """The same with another catalogue, and another kind of noise if one is given."""
        return replace(self, world=replace(self.world, items=items, noise=noise or self.world.noise))


PRESETS = {
    "ratings": Preset(
        Parameters(
            items=27_000,
            exponent=2.5,
            offset=420,
            quality_mean=0.85,
            quality_sd=0.6,
            correlation=0.63,
            bias_sd=0.63,
            preference_sd=0.26,
            interest_sd=0.15,
            affinity=5,
            noise_sd=0.9,
        ),
        Activity(fewest=20, shape=0.76, tail=0.01),
        Pace(tied=0.575, paused=0.037, returning=0.5, gap=(12, 23, 1.25), pause=(5.8 * DAY, 2.1)),
        users=140_000,
        events=20_000_000,
        reward="stars",
        once=True,
    ),
    "books": Preset(
        Parameters(
            items=695_762,
            exponent=0.77,
            offset=20,
            quality_mean=4.0,
            quality_sd=1.8,
            bias_sd=1.6,
            noise_sd=1.25,
        ),
        Activity(fewest=5, shape=0.9, tail=0.45),
        Pace(tied=0.3, paused=0.7, returning=1, gap=(0, 1, 0), pause=(30 * DAY, 1.6), resolution=DAY),
        users=694_897,
        events=10_055_160,
        reward="stars",
        once=True,
    ),
    "watch_time": Preset(
        Parameters(items=10_000, exponent=1.2, offset=50, quality_mean=-0.5, noise="burst"),
        Activity(fewest=10, shape=0.9, tail=0.1),
        Pace(tied=0, paused=0.25, returning=1, gap=(300, 2_400, 0.6), pause=(1.5 * DAY, 1.0)),
        users=50_000,
        events=5_000_000,
        reward="hours",
        once=False,
    ),
    "theory": Preset(
        Parameters(items=10_000, exponent=1.2, offset=50, quality_mean=0.0),
        Activity(fewest=10, shape=0.9, tail=0.1),
        Pace(tied=0, paused=0.25, returning=1, gap=(300, 2_400, 0.6), pause=(1.5 * DAY, 1.0)),
        users=50_000,
        events=5_000_000,
        reward="plain",
        once=False,
    ),
}
