"""Types of ids, rewards and times, and dates that show a wrong unit."""

from __future__ import annotations

import uuid
from datetime import date, datetime

import pyarrow as pa
import pytest

from retilt.data.columns import identifiers, microseconds, numbers
from retilt.types import InputError

SECOND = 978_300_760  # 2000-12-31 22:12:40 UTC, the first rating of ml-1m


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1, None], pa.uint32()), [1, None]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
    ],
)
def test_ids_are_integers_or_strings(array, expected):
    found = identifiers(array, "user", "u", "file")
    assert found.to_pylist() == expected
    assert found.type in (pa.int64(), pa.string())


def test_binary_uuids_become_their_usual_text():
    ids = [uuid.UUID(int=1), None, uuid.UUID("12345678-9abc-def0-1234-56789abcdef0")]
    raw = pa.array([each.bytes if each else None for each in ids], pa.binary(16))
    expected = [str(each) if each else None for each in ids]
    assert identifiers(raw, "item", "i", "file").to_pylist() == expected
    assert identifiers(pa.ExtensionArray.from_storage(pa.uuid(), raw), "item", "i", "file").to_pylist() == expected


@pytest.mark.parametrize(
    "array", [pa.array([1.5]), pa.array([True]), pa.array([[1]]), pa.array([datetime(2000, 1, 1)])]
)
def test_other_ids_are_refused(array):
    with pytest.raises(InputError, match=r"file: column 'u' \(columns\.user\) holds .*; ids are integers or strings"):
        identifiers(array, "user", "u", "file")


def test_an_id_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"2\*\*63"):
        identifiers(pa.array([2**63], pa.uint64()), "user", "u", "file")


def test_rewards_become_float32():
    from decimal import Decimal

    assert numbers(pa.array([Decimal("3.5")]), "r", "file").to_pylist() == [3.5]
    assert numbers(pa.array([True, False]), "r", "file").to_pylist() == [1.0, 0.0]
    assert numbers(pa.array([1e300, None]), "r", "file").to_pylist() == [float("inf"), None]
    with pytest.raises(InputError, match=r"columns\.reward\) holds string; a reward is a number"):
        numbers(pa.array(["5"]), "r", "file")


@pytest.mark.parametrize(
    ("array", "unit"),
    [
        (pa.array([SECOND]), "s"),
        (pa.array([SECOND * 1000]), "ms"),
        (pa.array([SECOND * 10**6]), "us"),
        (pa.array([SECOND * 10**9]), "ns"),
        (pa.array([float(SECOND)]), "s"),
        (pa.array([SECOND], pa.int32()), "s"),
        (pa.array([SECOND], pa.timestamp("s")), "ns"),
        (pa.array([SECOND * 10**9], pa.timestamp("ns", tz="Europe/Rome")), "s"),
    ],
)
def test_times_become_microseconds(array, unit):
    assert microseconds(array, "t", unit, "file", 0).to_pylist() == [SECOND * 10**6]


def test_dates_nulls_and_fractions():
    assert microseconds(pa.array([date(2000, 1, 1)]), "t", "s", "file", 0).to_pylist() == [946_684_800 * 10**6]
    assert microseconds(pa.array([None, SECOND]), "t", "s", "file", 0).to_pylist() == [None, SECOND * 10**6]
    found = microseconds(pa.array([SECOND + 0.25, float("nan")]), "t", "s", "file", 0)
    assert found.to_pylist() == [SECOND * 10**6 + 250_000, None]


@pytest.mark.parametrize(
    ("value", "unit", "likely"),
    [(SECOND * 1000, "s", "ms"), (SECOND, "ms", "s"), (SECOND * 10**9, "us", "ns"), (SECOND * 10**6, "s", "us")],
)
def test_a_wrong_unit_is_named(value, unit, likely):
    with pytest.raises(InputError, match=rf"file, row 12: t = {value} is outside .*columns\.time_unit={likely}$"):
        microseconds(pa.array([None, value]), "t", unit, "file", 10)


def test_other_impossible_times():
    with pytest.raises(InputError, match=r"outside 1990–2100 as columns\.time_unit=s$"):
        microseconds(pa.array([0]), "t", "s", "file", 0)
    with pytest.raises(InputError, match="row 1: t lies outside 1990–2100; its numbers look like 's', not 'ms'"):
        microseconds(pa.array([SECOND], pa.timestamp("ms")), "t", "s", "file", 0)
    with pytest.raises(InputError, match=r"holds string; a time is a number or a timestamp"):
        microseconds(pa.array(["2000-01-01"]), "t", "s", "file", 0)
