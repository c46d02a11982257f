"""Errors that name the key and what is allowed; identity and hashes; YAML that means what it says."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retilt.settings import Settings, build, config_hash, dump_yaml, free, identity_hash, keys, later, load_yaml
from retilt.types import InputError


class Inner(Settings):
    rate: float = Field(0.5, gt=0, le=1)
    """A rate."""
    note: str | None = None


class Outer(Settings):
    data: str = Field(min_length=1)
    """Where the data are."""
    count: int = Field(3, ge=1)
    inner: Inner = Inner()
    names: dict[str, str] = Field({})
    workers: int = free(1, ge=1)
    checkpoint: Inner = free(Inner())


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError):
        Outer(data="d").count = 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["missing key 'data'", "Where the data are."]),
        ({"data": "d", "cuont": 3}, ["unknown key 'cuont'", "did you mean 'count'?"]),
        ({"data": "d", "inner": {"rat": 1.0}}, ["unknown key 'inner.rat'", "'inner.rate'"]),
        ({"data": "d", "rate": 1.0}, ["unknown key 'rate'", "'checkpoint.rate' or 'inner.rate'"]),
        ({"data": "d", "count": 0}, ["count = 0", "at least 1"]),
        ({"data": "d", "count": "3"}, ["count = '3'", "integer"]),
        ({"data": "d", "count": True}, ["count = True", "integer"]),
        ({"data": "d", "inner": {"rate": 2.0}}, ["inner.rate = 2.0", "greater than 0 and at most 1"]),
        ({"data": "d", "inner": 3}, ["inner"]),
    ],
)
def test_an_error_names_the_key_and_what_would_be_right(values, words):
    with pytest.raises(InputError) as caught:
        build(Outer, values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(InputError, match=r"data.*; .*count.*; .*inner\.rate"):
        build(Outer, {"count": 0, "inner": {"rate": 0.0}})


def test_keys_are_dotted():
    assert [key.name for key in keys(Outer)] == [
        "data",
        "count",
        "inner.rate",
        "inner.note",
        "names",
        "workers",
        "checkpoint.rate",
        "checkpoint.note",
    ]


def test_identity_leaves_out_what_may_change():
    one = Outer(data="d")
    assert identity_hash(one) == identity_hash(Outer(data="d", workers=8, checkpoint=Inner(rate=1.0)))
    assert identity_hash(one) != identity_hash(Outer(data="d", count=4))
    assert identity_hash(one) != identity_hash(Outer(data="d", inner=Inner(rate=1.0)))
    assert config_hash(one) != config_hash(Outer(data="d", workers=8))


def test_a_fact_stands_for_a_field_so_that_a_moved_folder_stays_the_same():
    assert identity_hash(Outer(data="here"), data="f00d") == identity_hash(Outer(data="there"), data="f00d")
    assert identity_hash(Outer(data="here"), data="f00d") != identity_hash(Outer(data="here"), data="beef")


def test_the_order_of_a_mapping_counts():
    assert config_hash(Outer(data="d", names={"a": "x", "b": "y"})) != config_hash(
        Outer(data="d", names={"b": "y", "a": "x"})
    )


def test_a_hash_does_not_change_between_releases():
    class Small(BaseModel):
        model_config = ConfigDict(frozen=True)
        b: float = 0.5
        a: int = 1

    # printf '{"a":1,"b":0.5}' | sha256sum
    assert config_hash(Small()) == "2e76599baa1e42fd9bf6253fdc2bf4ea1317abe64622c63aeb6c862f4b705306"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+1", -25.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("7", 7),
        ("-7", -7),
        ("010", 10),
        ("089", 89),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("0x1F", "0x1F"),
        ("s3://b/c", "s3://b/c"),
        ("[0.1, 1e-1, a]", [0.1, 0.1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("'3'", "3"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("e5", "e5"),
        ("1e", "1e"),
        (".", "."),
        ("-", [None]),
    ],
)
def test_yaml_scalars_are_those_of_version_1_2(text, value):
    read = load_yaml(text, "here")
    assert read == value
    assert type(read) is type(value)


def test_yaml_nan():
    assert math.isnan(load_yaml(".nan", "here"))


@pytest.mark.parametrize("text", ["[1", "a: b: c", "!!python/object/apply:os.getcwd []", "{"])
def test_bad_yaml_names_its_source(text):
    with pytest.raises(InputError, match=r"conf\.yaml"):
        load_yaml(text, "conf.yaml")


@given(st.text(), st.floats(min_value=1e-300, max_value=1.0))
@example("\x85", 1.0)
@example("a\u2028 b", 1.0)
def test_what_is_printed_reads_back(text, rate):
    config = Outer(data="d", inner=Inner(rate=rate, note=text))
    assert build(Outer, load_yaml(dump_yaml(config), "here")) == config


@pytest.mark.parametrize("text", ["3e-4", "no", "null", "12", "0x1F", "2020-01-01", "on", "", "1_0", "~", "1e5"])
def test_text_that_looks_like_something_else_reads_back(text):
    config = Outer(data="d", inner=Inner(note=text))
    assert build(Outer, load_yaml(dump_yaml(config), "here")) == config


def test_a_field_that_came_later_leaves_what_was_made_before_as_it_is():
    class Newer(Outer):
        floor: float | None = later(None, gt=0)

    before = identity_hash(Outer(data="d"))
    assert identity_hash(Newer(data="d")) == before
    assert identity_hash(Newer(data="d", floor=None)) == before
    assert identity_hash(Newer(data="d", floor=1.0)) != before
