"""The data contract: which columns an event log needs, and what the Parquet files of a data set hold.

A shard has one row a user: ``user``, and lists of equal length ``item`` (vocabulary index 1 … V), ``reward``, ``time``
(microseconds since 1970 UTC) and ``order`` (position in the input), sorted by (time, order). Columns are found by name,
and the manifest's ``columns`` says which there are, so further rewards (``reward.<name>``), a target mask (``target``)
and side columns (``event.<name>``, ``item.<name>``) can join without a new format.
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from retilt.settings import Settings

FORMAT = 1
KIND = "dataset"
MANY_USERS = 50_000
LANES_FEW = 8
LANES_MANY = 64
ROW_GROUP_BYTES = 64 << 20
"""Most bytes of a row group before compression, unless one user alone has more."""
EVENT_BYTES = 24
"""Bytes of an event in a shard before compression: item 4, reward 4, time 8, order 8."""


class Columns(Settings):
    """Which columns of the event log hold what."""

    user: str = Field("user", min_length=1)
    """Column of the user id: integers or strings."""
    item: str = Field("item", min_length=1)
    """Column of the item id: integers or strings."""
    reward: str = Field("reward", min_length=1)
    """Column of the reward: a finite number."""
    time: str = Field("time", min_length=1)
    """Column of the event's time: a number in ``columns.time_unit`` since 1970-01-01 UTC, or a timestamp."""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of a numeric time column; a timestamp column carries its own."""


def event_schema(user: Any, item: Any) -> Any:
    """Arrow schema of cleaned events; ``user`` and ``item`` are int64 or string."""
    return pa.schema(
        [("user", user), ("item", item), ("reward", pa.float32()), ("time", pa.int64()), ("order", pa.int64())]
    )


def shard_schema(user: Any) -> Any:
    """Arrow schema of a shard: one row a user."""
    return pa.schema(
        [
            pa.field("user", user, nullable=False),
            *(
                pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
                for name, kind in (
                    ("item", pa.int32()),
                    ("reward", pa.float32()),
                    ("time", pa.int64()),
                    ("order", pa.int64()),
                )
            ),
        ]
    )


def vocabulary_schema(item: Any) -> Any:
    """Arrow schema of the vocabulary: one row an item, ``index`` 1 … V in the order of the items' ids.

    Where it extends an earlier vocabulary, that one's items come first, as they were numbered there.
    ``active`` is False for an item of which no event was kept.
    """
    return pa.schema(
        [
            pa.field("index", pa.int32(), nullable=False),
            pa.field("item", item, nullable=False),
            pa.field("count_select", pa.int64(), nullable=False),
            pa.field("count_refit", pa.int64(), nullable=False),
            pa.field("active", pa.bool_(), nullable=False),
        ]
    )


def lanes(users: int, row_groups: int) -> int:
    """Lanes of a data set: 8, from 50,000 users on 64, never more than there are row groups."""
    return max(1, min(LANES_MANY if users >= MANY_USERS else LANES_FEW, row_groups))
