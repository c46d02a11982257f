"""jobs/prepare.py and jobs/simulate.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retilt.config.sections import Storage
from retilt.data.schema import Columns
from retilt.data.world import Noise
from retilt.settings import Settings, free, later


class PrepareConfig(Settings):
    """jobs/prepare.py: an event log → a data set."""

    source: str = Field(min_length=1)
    """Event log: a Parquet or CSV file, a folder, a glob or a URI; or a known data set: `ml-100k`, `ml-1m`,
    `ml-20m`, `amazon-books`."""
    dataset: str = free(..., min_length=1)
    """URI of the folder that the data set is written to."""
    name: str | None = None
    """Name of the data set in reports; by default the last part of `dataset`."""
    columns: Columns = Columns()
    vocabulary: str | None = free(None, min_length=1)
    """URI of an earlier data set, whose items keep their indices; they are part of the identity, the place is not."""
    split: Literal["last", "last_k"] = "last_k"
    """`last`: a user's last event is test, the one before it validation; `last_k`: the same with `k` events each."""
    k: int = Field(10, ge=1)
    """Events per part under `last_k`; a user with fewer gives half of them to test, half of the rest to validation."""
    min_user_events: int = Field(1, ge=1)
    """Users with fewer events are dropped (counted once, before anything else is dropped)."""
    min_item_events: int = Field(1, ge=1)
    """Items with fewer events are dropped (counted once, before anything else is dropped)."""
    min_sequence_events: int = Field(3, ge=3)
    """Users with fewer events left, after all that is dropped, are dropped; a split needs 3."""
    max_events_per_user: int | None = Field(None, ge=3)
    """Keep this many of a user's most recent events; null keeps all."""
    on_duplicates: Literal["keep", "drop"] = "keep"
    """`drop`: of events with the same user, item and time only the last in input order stays."""
    on_bad_rows: Literal["fail", "drop"] = "fail"
    """What happens to a row with a null, or with a reward that is not finite."""
    time_floor: float | None = later(None, gt=0, allow_inf_nan=False)
    """Minutes to whose multiples times are rounded down; a user's events of one time stay in the order of the input."""
    threads: int | None = free(None, ge=1)
    """CPU cores to use where this job starts Ray itself; null means all."""
    storage: Storage = free(Storage())


class SimulateConfig(Settings):
    """jobs/simulate.py: a simulated world → an event log."""

    output: str = free(..., min_length=1)
    """URI of the folder that the log is written to; its `events/` is a `source` for jobs/prepare.py."""
    preset: Literal["ratings", "books", "watch_time", "theory"] = "ratings"
    """What the log resembles: `ratings` MovieLens, `books` Amazon Books; see data.md."""
    users: int | None = Field(None, ge=1)
    """Users; null takes the preset's number."""
    items: int | None = Field(None, ge=2, lt=1 << 31)
    """Items of the catalogue; null takes the preset's number."""
    events: int | None = Field(None, ge=1)
    """Events of all users together, exactly; null takes the preset's number."""
    seed: int = Field(0, ge=0, lt=1 << 32)
    """Seed of the world, its users and their choices."""
    noise: Noise | None = None
    """Noise: new with each event, fixed by state and item, larger for rare items, one a session; null: preset's."""
    truth: bool = False
    """Also write `true_reward`, the reward's mean, and `log_propensity`, the log-probability of the choice."""
    threads: int | None = free(None, ge=1)
    """CPU cores to use where this job starts Ray itself; null means all."""
    storage: Storage = free(Storage())
