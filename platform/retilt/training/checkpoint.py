"""Checkpoints: a folder of safetensors and JSON whose manifest is written last; without it the checkpoint is not there.

``dense.safetensors`` and ``dense-optimizer.safetensors`` hold the backbone, ``table-<first>-<last>.safetensors`` and
``table-optimizer-<first>-<last>.safetensors`` the rows first … last (exclusive) of the item table, written by the rank
that holds them and loaded by slicing on any number of workers. ``state.json`` says where the run stands and what the
policy is. A published policy (``policy/best``, ``policy/last``) is a copy of a checkpoint: one format serves both.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from retilt import artifact, ranks, storage
from retilt.models.policy import CataloguePolicy
from retilt.types import InputError

KIND, FORMAT = "checkpoint", 1
STATE = "state.json"
RANGE_ROWS = 1 << 20
"""Rows of one file at the most: bounds the memory of saving and loading."""
_TABLE = re.compile(r"table-(\d+)-(\d+)\.safetensors")
_FOLDER = re.compile(r"(\d+)-[0-9a-f]+")


def new_place(output: str, step: int) -> str:
    """A folder no other attempt writes to: ``<output>/checkpoints/<step>-<attempt>``, equal on all ranks."""
    return ranks.broadcast_object(storage.join(output, "checkpoints", f"{step:08d}-{secrets.token_hex(4)}"))


def save(uri: str, policy: CataloguePolicy, dense: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Write a checkpoint. Collective; returns on every rank after the manifest stands."""
    entries = list(_save_table(uri, policy))
    if ranks.rank() == 0:
        parameters = _dense_parameters(policy)
        entries.append(artifact.save_tensors(uri, "dense.safetensors", parameters))
        entries.append(artifact.save_tensors(uri, "dense-optimizer.safetensors", _dense_state(policy, dense)))
        storage.write_json(storage.join(uri, STATE), dict(state))
        entries.append(artifact.file_entry(uri, STATE))
    gathered = ranks.gather_object(entries)
    if ranks.rank() == 0:
        body = {"step": state["step"]}
        artifact.write_manifest(uri, KIND, FORMAT, body, [entry for part in gathered for entry in part])
    ranks.barrier()


def _dense_parameters(policy: CataloguePolicy) -> dict[str, Tensor]:
    return dict(policy.network.backbone.state_dict())


def _dense_state(policy: CataloguePolicy, dense: torch.optim.Adam) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in policy.network.backbone.named_parameters()
        for key, value in dense.state[parameter].items()
    }


def _save_table(uri: str, policy: CataloguePolicy) -> Iterator[artifact.FileEntry]:
    table = policy.table
    if not table.sharded and ranks.rank() != 0:
        return
    state = table.state()
    for first in range(table.first, table.last, RANGE_ROWS):
        last = min(first + RANGE_ROWS, table.last)
        part = slice(first - table.first, last - table.first)
        rows = {name: value[part] if value.ndim else value for name, value in state.items()}
        name = f"{first:010d}-{last:010d}.safetensors"
        yield artifact.save_tensors(uri, f"table-{name}", {"weight": rows.pop("weight")[:, : table.width]})
        yield artifact.save_tensors(uri, f"table-optimizer-{name}", rows)


def find(uri: str) -> str:
    """The checkpoint that a policy's URI stands for: of a run folder, its policy/, policy/best or last, or itself.

    Raises:
        InputError: no checkpoint there, or a file of it is absent or of another size.
    """
    for place in ("", "policy/best", "policy/last", "best", "last"):
        candidate = storage.join(uri, *place.split("/")) if place else uri
        if storage.exists(storage.join(candidate, artifact.MANIFEST)):
            artifact.require_files(candidate, artifact.read_manifest(candidate, KIND, [FORMAT]))
            return candidate
    raise InputError(
        f"{uri}: no policy here; expected a finished run's folder, its policy/best or policy/last, or a checkpoint"
    )


def read_state(uri: str) -> dict[str, Any]:
    """``state.json`` of a checkpoint, verified."""
    manifest = artifact.read_manifest(uri, KIND, [FORMAT])
    artifact.verify(uri, manifest, [STATE])
    state = storage.read_json(storage.join(uri, STATE))
    assert isinstance(state, dict)
    return state


def fingerprint(uri: str) -> str:
    """What identifies a policy: the sha256 over the names and hashes of its files."""
    return artifact.fingerprint(artifact.read_manifest(uri, KIND, [FORMAT])["files"])


def load(uri: str, policy: CataloguePolicy, dense: torch.optim.Adam | None) -> list[str]:
    """Copy a checkpoint into a policy, and into its optimizers where ``dense`` is given; returns notes for the user.

    Every rank reads the dense part and the ranges of rows it needs. Optimizer state of another kind than the policy's
    (Adam's for row-wise Adagrad, say) is left out and noted.

    Raises:
        InputError: a file is absent, damaged, or of other sizes.
    """
    manifest = artifact.read_manifest(uri, KIND, [FORMAT])
    parameters = _verified(uri, manifest, "dense.safetensors")
    try:
        policy.network.backbone.load_state_dict(parameters)
    except RuntimeError as problem:
        raise InputError(
            f"{uri}: dense.safetensors does not fit this model: {str(problem).splitlines()[-1].strip()}"
        ) from problem
    if dense is not None:
        saved = _verified(uri, manifest, "dense-optimizer.safetensors")
        for name, value in _dense_state(policy, dense).items():
            value.copy_(saved[name])
    return _load_table(uri, manifest, policy, with_optimizer=dense is not None)


def _verified(uri: str, manifest: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    artifact.verify(uri, manifest, [path])
    return artifact.load_tensors(storage.join(uri, path))


@torch.no_grad()
def _load_table(uri: str, manifest: Mapping[str, Any], policy: CataloguePolicy, with_optimizer: bool) -> list[str]:
    table, state, notes = policy.table, policy.table.state(), set[str]()
    covered = 0
    for entry in manifest["files"]:
        if not (match := _TABLE.fullmatch(entry["path"])):
            continue
        first, last = int(match[1]), int(match[2])
        low, high = max(first, table.first), min(last, table.last)
        if low >= high:
            continue
        here, there = slice(low - table.first, high - table.first), slice(low - first, high - first)
        weight = _verified(uri, manifest, entry["path"])["weight"]
        state["weight"][here, : table.width].copy_(weight[there])
        covered += high - low
        if not with_optimizer:
            continue
        saved = _verified(uri, manifest, entry["path"].replace("table-", "table-optimizer-"))
        if set(saved) != set(state) - {"weight"}:
            notes.add("the item table's optimizer state is of another kind and starts anew")
            continue
        for name, value in saved.items():
            _copy_rows(state[name], value, here, there)
    if covered != table.last - table.first:
        raise InputError(f"{uri}: covers {covered} of the rows {table.first} to {table.last} of the item table")
    return sorted(notes)


def _copy_rows(target: Tensor, source: Tensor, here: slice, there: slice) -> None:
    if target.ndim == 0:
        target.copy_(source)
    else:
        target[here].copy_(source[there])


def newest(output: str) -> str | None:
    """The valid checkpoint of a run with the highest step, or None. A folder without manifest does not count."""
    for folder in sorted(_folders(output), key=_step, reverse=True):
        place = storage.join(output, "checkpoints", folder)
        if storage.exists(storage.join(place, artifact.MANIFEST)):
            return place
    return None


def prune(output: str, keep: int, best: str | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and ``best``; also what interrupted attempts left behind."""
    folders = sorted(_folders(output), key=_step, reverse=True)
    whole = [f for f in folders if storage.exists(storage.join(output, "checkpoints", f, artifact.MANIFEST))]
    kept = {*whole[:keep], storage.name(best) if best else ""}
    for folder in folders:
        if folder not in kept:
            delete(storage.join(output, "checkpoints", folder))


def delete(place: str) -> None:
    """Delete a checkpoint, its manifest first, so that no reader takes half of one for a whole."""
    if storage.exists(storage.join(place, artifact.MANIFEST)):
        storage.delete(storage.join(place, artifact.MANIFEST))
    storage.delete(place)


def _folders(output: str) -> set[str]:
    files = storage.list_files(storage.join(output, "checkpoints"))
    return {name for file in files if _FOLDER.fullmatch(name := file.path.split("/")[0])}


def _step(folder: str) -> int:
    match = _FOLDER.fullmatch(folder)
    assert match
    return int(match[1])


def publish(source: str, destination: str) -> None:
    """Copy a checkpoint to ``policy/best`` or ``policy/last``, manifest last; an earlier one there goes first."""
    manifest = artifact.read_manifest(source, KIND, [FORMAT])
    delete(destination)
    for entry in manifest["files"]:
        storage.copy(storage.join(source, entry["path"]), storage.join(destination, entry["path"]))
    storage.copy(storage.join(source, artifact.MANIFEST), storage.join(destination, artifact.MANIFEST))
