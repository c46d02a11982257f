"""Manifests: an artifact is a folder of immutable files and a ``manifest.json``, written last.

Files are named with their sizes and sha256, and never unpickled: tensors are safetensors, the rest is JSON and Parquet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from retilt import storage
from retilt.types import DamagedError, InputError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileEntry(TypedDict):
    """A file of an artifact: path relative to its folder, size, hash."""

    path: str
    bytes: int
    sha256: str


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """Hexadecimal sha256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_entry(uri: str, relative: str) -> FileEntry:
    """Size and sha256 of a written file."""
    place = storage.join(uri, relative)
    return {"path": relative, "bytes": storage.size(place), "sha256": storage.sha256(place)}


def bytes_entry(relative: str, data: bytes) -> FileEntry:
    """The entry of a file whose bytes are at hand."""
    return {"path": relative, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_manifest(uri: str, kind: str, format: int, body: Mapping[str, Any], files: Collection[FileEntry]) -> None:
    """Make the folder ``uri`` an artifact; call it when every file is in place."""
    ordered = sorted(files, key=lambda file: file["path"])
    value = {"kind": kind, "format": format, **body, "files": ordered}
    _check_files(uri, ordered)
    storage.write_json(storage.join(uri, MANIFEST), value)


def read_manifest(uri: str, kind: str, formats: Collection[int]) -> dict[str, Any]:
    """The manifest of the artifact in the folder ``uri``.

    Raises:
        InputError: no such artifact, another kind or format, a file path that leaves the folder.
    """
    place = storage.join(uri, MANIFEST)
    if not storage.exists(place):
        raise InputError(f"{uri}: no {kind} here ({MANIFEST} is missing)")
    return check_manifest(place, storage.read_json(place), kind, formats)


def check_manifest(place: str, value: Any, kind: str, formats: Collection[int]) -> dict[str, Any]:
    """The value of the manifest at ``place``, if it is one of that kind and format; see ``read_manifest``."""
    if not isinstance(value, dict) or value.get("kind") != kind:
        found = value.get("kind") if isinstance(value, dict) else None
        raise InputError(f"{place}: expected a {kind}, found {found!r}")
    if value.get("format") not in formats:
        known = ", ".join(map(str, sorted(formats)))
        raise InputError(f"{place}: format {value.get('format')!r} is not one that this version reads ({known})")
    _check_files(place, value.get("files"))
    return value


def _check_files(place: str, files: Any) -> None:
    if not isinstance(files, list):
        raise InputError(f"{place}: 'files' must be a list")
    seen: set[str] = set()
    for entry in files:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise InputError(f"{place}: each of 'files' needs a path")
        path = entry["path"]
        parts = path.split("/")
        if "\\" in path or "\0" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
            raise InputError(f"{place}: the path {path!r} leaves the folder; write it like shards/part.parquet")
        if path.casefold() in seen:
            raise InputError(f"{place}: {path!r} is listed twice")
        seen.add(path.casefold())
        size, digest = entry.get("bytes"), entry.get("sha256")
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise InputError(f"{place}: {path!r} needs its size in bytes and its sha256")


def require_files(uri: str, manifest: Mapping[str, Any]) -> None:
    """Compare presence and sizes of all listed files with the manifest, by one listing and without reading them.

    Raises:
        DamagedError: a file is absent or of another size; names it.
    """
    sizes = {file.path: file.size for file in storage.list_files(uri)}
    for entry in manifest["files"]:
        _require_size(storage.join(uri, entry["path"]), sizes.get(entry["path"]), entry["bytes"])


def _require_size(place: str, size: int | None, expected: int) -> None:
    if size is None:
        raise DamagedError(f"{place}: listed in {MANIFEST} but absent")
    if size != expected:
        raise DamagedError(f"{place}: {size} bytes, but {MANIFEST} says {expected}")


def verify(uri: str, manifest: Mapping[str, Any], paths: Collection[str] | None = None) -> None:
    """Compare sizes and sha256 of all listed files, or of ``paths``, with the manifest.

    Raises:
        DamagedError: a file is absent or differs; names it.
        InputError: one of ``paths`` is not listed.
    """
    entries: dict[str, FileEntry] = {entry["path"]: entry for entry in manifest["files"]}
    for path in sorted(entries if paths is None else paths):
        if path not in entries:
            raise InputError(f"{uri}: {path} is not listed in {MANIFEST}")
        place = storage.join(uri, path)
        _require_size(place, storage.size(place) if storage.exists(place) else None, entries[path]["bytes"])
        if not _matches(place, entries[path]["sha256"]):
            raise DamagedError(f"{place}: sha256 differs from {MANIFEST}; the file is damaged or was replaced")


def _matches(place: str, sha256: str) -> bool:
    # A remote file is read again before it is called damaged: TCP's checksum misses some of what a network damages.
    return storage.sha256(place) == sha256 or (not storage.is_local(place) and storage.sha256(place) == sha256)


def read_verified(uri: str, manifest: Mapping[str, Any], path: str) -> bytes:
    """The bytes of a listed file, which are those that the manifest vouches for.

    Raises:
        DamagedError: the file is absent or differs; names it.
    """
    (entry,) = [entry for entry in manifest["files"] if entry["path"] == path] or [None]
    place = storage.join(uri, path)
    if entry is None:
        raise DamagedError(f"{place}: not listed in {MANIFEST}")
    _require_size(place, storage.size(place) if storage.exists(place) else None, entry["bytes"])
    for _ in range(1 if storage.is_local(uri) else 2):  # what a network damages comes right the second time
        data = storage.read_bytes(place)
        if hashlib.sha256(data).hexdigest() == entry["sha256"]:
            return data
    raise DamagedError(f"{place}: sha256 differs from {MANIFEST}; the file is damaged or was replaced")


def save_tensors(uri: str, relative: str, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write named tensors as ``<uri>/<relative>`` (safetensors) and return the file's entry."""
    import safetensors.torch  # here, because processes that prepare data need no torch

    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    storage.write_bytes(storage.join(uri, relative), data)
    return bytes_entry(relative, data)


def load_tensors(uri: str) -> dict[str, Tensor]:
    """``parse_tensors`` of a file, unverified."""
    return parse_tensors(uri, storage.read_bytes(uri))


def parse_tensors(uri: str, data: bytes) -> dict[str, Tensor]:
    """Named tensors in the bytes of the safetensors file ``uri``, on the CPU.

    Raises:
        DamagedError: not a whole safetensors file.
    """
    import safetensors.torch

    try:
        return dict(safetensors.torch.load(data))
    except safetensors.SafetensorError as problem:
        raise DamagedError(f"{uri}: not a whole safetensors file ({problem})") from problem
