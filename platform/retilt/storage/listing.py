"""Which files there are: folders and globs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from retilt.storage.files import exists, is_file
from retilt.storage.paths import absolute, join
from retilt.storage.patience import retried
from retilt.storage.stores import reading, resolve
from retilt.types import InputError

_WILDCARD = re.compile(r"[*?\[]")
_TEMPORARY = re.compile(r"(^|/)\.[^/]*\.(tmp|lock)$")


@dataclass(frozen=True)
class FileInfo:
    """A file below a folder: its path relative to the folder, with ``/``, and its size in bytes."""

    path: str
    size: int


def _walk(uri: str, recursive: bool, temporary: bool = False) -> list[FileInfo]:
    def found() -> tuple[str, list[Any]]:
        filesystem, path = resolve(uri)
        with reading(uri):
            if filesystem.get_file_info(path).type != pafs.FileType.Directory:
                return path, []
            return path, filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive))

    path, infos = retried(found)
    files = [
        info for info in infos if info.type == pafs.FileType.File and bool(_TEMPORARY.search(info.path)) == temporary
    ]
    start = len(path.strip("/"))
    relative = [FileInfo(info.path.strip("/")[start:].lstrip("/"), int(info.size)) for info in files]
    return sorted(relative, key=lambda file: file.path)


def list_files(uri: str) -> list[FileInfo]:
    """Every file below a folder, sorted by path; empty where there is no such folder."""
    return _walk(uri, recursive=True)


def list_leftovers(uri: str) -> list[FileInfo]:
    """Temporary files below a folder, which killed processes leave behind; ``list_files`` does not show them."""
    return _walk(uri, recursive=True, temporary=True)


def expand(source: str) -> list[str]:
    """URIs of a file, of the data files below a folder (not those starting with ``_`` or ``.``), or of a glob, sorted.

    In a glob ``*`` and ``?`` stay within one folder, ``**`` does not.

    Raises:
        InputError: nothing found.
    """
    if is_file(source):
        return [absolute(source)]
    if not _WILDCARD.search(source):
        if not exists(source):
            raise InputError(f"{source}: no such file or folder")
        found = [file.path for file in list_files(source) if not re.search(r"(^|/)[_.]", file.path)]
        if not found:
            raise InputError(f"{source}: the folder holds no data files")
        return [join(absolute(source), path) for path in found]
    wildcard = _WILDCARD.search(source)
    assert wildcard is not None
    folder, _, pattern = source[: wildcard.start()].rpartition("/")
    pattern += source[wildcard.start() :]
    folder = folder or ("/" if source.startswith("/") else ".")
    matches = re.compile(_glob(pattern)).fullmatch
    recursive = "/" in pattern or "**" in pattern
    found = [file.path for file in _walk(folder, recursive) if matches(file.path)]
    if not found:
        raise InputError(f"{source}: no file matches")
    return [join(absolute(folder), path) for path in found]


def _glob(pattern: str) -> str:
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(part: str) -> str:
        if part in tokens:
            return tokens[part]
        return "[" + part[1:-1].replace("!", "^", 1) + "]" if len(part) > 1 else re.escape(part)

    return "".join(translate(part) for part in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern))
