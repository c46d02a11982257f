"""What every configuration shares: strictness, errors that name the key, identity, hashes, YAML."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from retilt.types import InputError, nearest

C = TypeVar("C", bound=BaseModel)


class Settings(BaseModel):
    """Base of all configurations: frozen, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def free(default: Any, **constraints: Any) -> Any:
    """A field that is no part of a run's identity: changing it continues the same run."""
    return Field(default, json_schema_extra={"identity": False}, **constraints)


def later(default: Any, **constraints: Any) -> Any:
    """A field that came when runs existed already: part of the identity only where it is not the default.

    So what was made before stays what it is, and is continued and found.
    """
    return Field(default, json_schema_extra={"identity": "unless default"}, **constraints)


def members(field: FieldInfo) -> list[type[BaseModel]]:
    """The settings classes that a field may hold: one for a nested section, several for a union, none for a scalar."""

    def walk(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for argument in get_args(annotation):
            yield from walk(argument)

    return list(dict.fromkeys(walk(field.annotation)))


def by_name(field: FieldInfo) -> bool:
    """Whether a field holds a section for each of any number of names."""
    return get_origin(field.annotation) is dict and bool(members(field))


class Key(NamedTuple):
    """A key that a configuration accepts."""

    name: str
    """Dotted."""
    field: FieldInfo
    owners: tuple[str, ...]
    """Names of the union's members that have the key; empty where all have it."""
    allowed: str
    """The values it takes, in words."""


def keys(cls: type[BaseModel], prefix: str = "") -> list[Key]:
    """Every key that a configuration accepts, in the order of definition."""
    found: list[Key] = []
    for name, field in cls.model_fields.items():
        inner = members(field)
        if not inner:
            found.append(Key(prefix + name, field, (), allowed(field)))
        elif len(inner) == 1:
            found += keys(inner[0], f"{prefix}{name}.{'NAME.' if by_name(field) else ''}")
        else:
            found += _union_keys(inner, f"{prefix}{name}.")
    return found


def _union_keys(union: list[type[BaseModel]], prefix: str) -> list[Key]:
    """The keys of a union's members; one that several define alike is listed once."""
    names = [str(member.model_fields["name"].default) for member in union]
    found = [Key(f"{prefix}name", union[0].model_fields["name"], (), _either([repr(name) for name in names]))]
    for member, owner in zip(union, names, strict=True):
        for key in keys(member, prefix):
            if key.name == f"{prefix}name":
                continue
            for place, known in enumerate(found):
                if _told(known) == _told(key):
                    found[place] = known._replace(owners=(*known.owners, owner))
                    break
            else:
                found.append(key._replace(owners=(owner,)))
    return [key._replace(owners=()) if len(key.owners) == len(names) else key for key in found]


def _told(key: Key) -> tuple[Any, ...]:
    """What a list of keys says of one."""
    return key.name, key.field.description, key.allowed, key.field.default


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def allowed(field: FieldInfo) -> str:
    """The values that a field takes, in words: ``"greater than 0"``, ``"'auto', 'cpu' or 'cuda'"``; "" if any."""
    choices = [repr(value) for value in _choices(field.annotation)]
    if choices:
        return _either(choices)
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    found = [
        f"{text} {getattr(each, key)}" for each in field.metadata for key, text in words.items() if hasattr(each, key)
    ]
    return " and ".join(found)


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for argument in get_args(annotation) for value in _choices(argument)]


def build(cls: type[C], values: Mapping[str, Any]) -> C:
    """Validate plain values into a configuration. Raises InputError: every wrong key, its value and what is allowed."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        sentences = [_sentence(cls, each) for each in error.errors(include_url=False)]
        raise InputError("; ".join(dict.fromkeys(sentences))) from None


def _sentence(cls: type[BaseModel], error: Mapping[str, Any]) -> str:
    path, owner, field = _locate(cls, error["loc"])
    kind, given = error["type"], error.get("input")
    limit = allowed(field) if field is not None else ""
    if kind == "extra_forbidden":
        return f"unknown key '{path}'{_suggestion(cls, owner, path)}"
    if kind == "missing":
        return f"missing key '{path}'" + (f": {field.description}" if field is not None and field.description else "")
    if kind == "union_tag_invalid":
        names = [each.strip(" '") for each in error["ctx"]["expected_tags"].split(",")]
        tag = str(error["ctx"]["tag"])
        return f"{path}.name = {tag!r}: must be one of {', '.join(names)}{nearest(tag, names)}"
    if isinstance(error.get("ctx", {}).get("error"), Exception):
        reason = str(error["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    expected = f"must be {limit}" if limit else error["msg"][:1].lower() + error["msg"][1:]
    if limit and kind.endswith(("_type", "_parsing", "_from_float")):
        expected = f"{error['msg'][:1].lower() + error['msg'][1:]}, {limit}"
    hint = (
        nearest(given, [str(each) for each in _choices(field.annotation)]) if field and isinstance(given, str) else ""
    )
    return f"{path} = {given!r}: {expected}{hint}"


def _locate(cls: type[BaseModel], loc: Sequence[Any]) -> tuple[str, type[BaseModel], FieldInfo | None]:
    """(dotted key, class it was looked up in, its field), without the union tags that pydantic adds to a location."""
    path: list[str] = []
    owner, field = cls, None
    inner: list[type[BaseModel]] = [cls]
    for step in loc:
        if path and field is not None and by_name(field):
            path.append(str(step))
            field = None
            continue
        tagged = [each for each in inner if "name" in each.model_fields and each.model_fields["name"].default == step]
        if path and tagged and step not in owner.model_fields:
            owner, inner = tagged[0], tagged
            continue
        path.append(str(step))
        owner = inner[0] if inner else owner
        field = owner.model_fields.get(str(step)) if inner else None
        inner = members(field) if field is not None else []
    return ".".join(path), owner, field


def _suggestion(cls: type[BaseModel], owner: type[BaseModel], path: str) -> str:
    """Where an unknown key may have been meant: its plural here or its name elsewhere; else the nearest sibling."""
    section, _, last = path.rpartition(".")
    known = keys(cls)
    owners = [each for key in known if key.name == path for each in key.owners]
    if owners:
        *some, final = owners
        named = f"{', '.join(some)} and {final}" if some else final
        return f" here: it belongs to {named}, not to {owner.model_fields['name'].default}"
    prefix = f"{section}." if section else ""
    siblings = [prefix + name for name in owner.model_fields]
    elsewhere = sorted({key.name for key in known if key.name.rpartition(".")[2] == last})
    if elsewhere:
        plural = [each for each in siblings if each == f"{path}s"]
        return f"; did you mean {' or '.join(repr(each) for each in [*plural, *elsewhere])}?"
    return nearest(path, siblings)


def plain(config: BaseModel) -> dict[str, Any]:
    """The configuration as JSON-like values, every default written out."""
    return config.model_dump(mode="json")


def config_hash(config: BaseModel) -> str:
    """sha256 over every value of the configuration."""
    return _sha256(_canonical(config, identity_only=False))


def identity_hash(config: BaseModel, **facts: Any) -> str:
    """sha256 over the fields that make a run what it is.

    Workers, threads, storage and epochs are not among them. ``facts`` replace fields by what they stand for, so that a
    moved folder stays the same run: ``identity_hash(config, dataset=fingerprint)``.
    """
    values = _canonical(config, identity_only=True)
    unknown = set(facts) - set(type(config).model_fields)
    assert not unknown, f"no such fields: {unknown}"
    return _sha256({**values, **facts})


def _canonical(value: Any, identity_only: bool) -> Any:
    if isinstance(value, BaseModel):
        found = {}
        for name, field in type(value).model_fields.items():
            extra = field.json_schema_extra
            kind = extra.get("identity") if isinstance(extra, dict) else None
            if identity_only and (kind is False or (kind and getattr(value, name) == field.default)):
                continue
            found[name] = _canonical(getattr(value, name), identity_only)
        return found
    if isinstance(value, dict):
        # Pairs, because the order of a mapping may carry meaning (the first policy is the baseline).
        return [[key, _canonical(each, identity_only)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_canonical(each, identity_only) for each in value]
    return value


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: 1.1 would read ``3e-4`` as a string, ``no`` as false and ``12:30`` as 750."""


_Loader.yaml_implicit_resolvers = {}

for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    return float(text.replace(".", "") if text[-1:].isalpha() else text)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


class _Dumper(yaml.SafeDumper):
    """Quotes what ``_Loader`` or a YAML 1.1 reader would take for something other than text."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text with one of Unicode's line breaks is escaped; PyYAML's other styles would fold it away."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def load_yaml(text: str | bytes, where: str) -> Any:
    """Parse YAML with 1.2's scalars; ``where`` names the source in an error. Raises InputError."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 a subclass of SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{where}{place}: not valid YAML ({getattr(error, 'problem', None) or error})") from None


def dump_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML that ``load_yaml`` reads back to the same values."""
    return yaml.dump(plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
