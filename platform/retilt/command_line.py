"""The one command-line language of all jobs: ``--config FILE_OR_URI`` and dotted ``key=value``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from retilt import storage
from retilt.settings import build, config_hash, dump_yaml, keys, load_yaml, members
from retilt.types import InputError, RetiltError, Stopped

C = TypeVar("C", bound=BaseModel)


@dataclass(frozen=True)
class Parsed(Generic[C]):
    """What a command line asks for."""

    config: C
    dry_run: bool
    """Validate, print the plan and stop."""
    print_config: bool
    """Print the resolved configuration and stop."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message}; --help lists the flags and keys")


def parse(
    cls: type[C],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    required: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> Parsed[C]:
    """Read flags, an optional configuration file and overrides, later ones winning.

    ``required`` keys must be given although the class has a default; ``refused`` keys must not, with the reason.
    Raises InputError naming the key, the nearest known one and the allowed range; ``--help`` exits with 0.
    """
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--config FILE_OR_URI] [--print-config] [--dry-run] [key=value ...]",
        description=description,
        epilog=help_text(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE_OR_URI", help="YAML file to start from")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan and the memory, and stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set a key; nested keys are dotted")
    flags = parser.parse_intermixed_args(list(argv))
    values = read_config(flags.config) if flags.config else {}
    given = merge(cls, values, [_override(each) for each in flags.overrides])
    for key in required:
        if given.get(key) is None:
            raise InputError(f"missing key '{key}': {cls.model_fields[key].description or 'it must be given'}")
    for key, reason in (refused or {}).items():
        if given.get(key) is not None:
            raise InputError(f"{key}: {reason}")
    return Parsed(build(cls, given), dry_run=flags.dry_run, print_config=flags.print_config)


def read_config(uri: str) -> dict[str, Any]:
    """The mapping in a YAML file at a path or URI. Raises InputError, StorageError."""
    storage.require_reachable(uri)
    values = load_yaml(storage.read_bytes(uri), f"--config {uri}")
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"--config {uri}: must hold keys and values, found {type(values).__name__}")
    return values


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip("."):
        raise InputError(f"'{text}' is not of the form key=value")
    # In YAML a leading * would name an anchor, which one value cannot have; here it begins a glob.
    return key.strip(), value if value.startswith("*") else load_yaml(value, f"{key}={value}")


def merge(cls: type[BaseModel], values: Mapping[str, Any], overrides: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Lay overrides over a file's values.

    A section's name goes first, so that the order of arguments does not matter; another name than the file's drops the
    file's other keys of that section, which belong to what was replaced.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    sections = {
        name for name, field in cls.model_fields.items() if any("name" in each.model_fields for each in members(field))
    }
    named = [(key.removesuffix(".name"), value) for key, value in overrides if key.removesuffix(".name") in sections]
    for section, name in named:
        before = merged.get(section)
        if isinstance(name, str):
            kept = before if isinstance(before, dict) and before.get("name") == name else {}
            merged[section] = {**kept, "name": name}
        else:
            merged[section] = name
    for key, value in overrides:
        if key.removesuffix(".name") not in sections:
            _set(merged, key, value)
    return merged


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for done, step in enumerate(path, start=1):
        inner = values.get(step)
        if isinstance(inner, str):
            inner = {"name": inner}
        elif inner is not None and not isinstance(inner, dict):
            raise InputError(f"'{key}' cannot be set: '{'.'.join(path[:done])}' is {inner!r}, not a section")
        values[step] = dict(inner or {})
        values = values[step]
    values[last] = value


def help_text(cls: type[BaseModel]) -> str:
    """The keys of a configuration with default, meaning and allowed values, for a terminal."""
    lines = ["keys:"]
    for key in keys(cls):
        default = "required" if key.field.is_required() else f"default {format_value(key.field.get_default())}"
        notes = [f"only {', '.join(key.owners)}" if key.owners else "", key.allowed, default]
        text = f"{key.field.description or ''} ({'; '.join(note for note in notes if note)})".strip()
        lines += [f"  {key.name}", *textwrap.wrap(text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """A default as one would type it: null, true, 0.001, bc."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "name", value))


def job(
    cls: type[C],
    action: Callable[[C, bool], object],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    required: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> int:
    """A whole job: parse, print the configuration if asked, else ``action(config, dry_run)``. Returns the exit code."""

    def main() -> int:
        parsed = parse(cls, argv, prog=prog, description=description, required=required, refused=refused)
        if parsed.print_config:
            print(dump_yaml(parsed.config), end="")
            print(f"# sha256 {config_hash(parsed.config)}")
            return 0
        action(parsed.config, parsed.dry_run)
        return 0

    return guarded(main)


def guarded(action: Callable[[], int]) -> int:
    """Run ``action``; an error for the user becomes one line on stderr and its exit code, Ctrl-C becomes 130."""
    try:
        return action()
    except RetiltError as error:
        wrong = "" if isinstance(error, Stopped) else "error: "  # what somebody asked for is none
        print(f"{wrong}{' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
