"""Checkpoints: a folder of safetensors and JSON whose manifest is written last; without it the checkpoint is not there.

``dense.safetensors`` and ``dense-optimizer.safetensors`` hold the backbone, ``head.safetensors`` and
``head-optimizer.safetensors`` a head beside it if there is one, ``table-<first>-<last>.safetensors`` and
``table-optimizer-<first>-<last>.safetensors`` the rows first … last (exclusive) of the item table, written by the rank
that holds them and loaded by slicing on any number of workers. ``state.json`` says where the run stands and what the
policy is. A published policy (``policy/best``, ``policy/last``) is a copy of a checkpoint: one format serves both.
Who writes them, and when, is saver.py's subject.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from retilt import artifact, ranks, storage
from retilt.lease import LEASE
from retilt.models.heads import RewardHead
from retilt.models.policy import CataloguePolicy
from retilt.types import DamagedError, InputError

KIND, FORMAT = "checkpoint", 2
STATE = "state.json"
CHECKSUM = "manifest_sha256"
RANGE_ROWS = 1 << 18
"""Rows of one file at the most: bounds the memory of saving and loading."""
_TABLE = re.compile(r"table-(\d+)-(\d+)\.safetensors")
_FOLDER = re.compile(r"(\d+)-[0-9a-f]+")


def new_place(output: str, step: int) -> str:
    """A folder no other attempt writes to: ``<output>/checkpoints/<step>-<attempt>``, equal on all ranks."""
    return ranks.broadcast_object(storage.join(output, "checkpoints", f"{step:08d}-{secrets.token_hex(4)}"))


class Snapshot:
    """What this rank writes of a checkpoint, copied so that training can go on; the next copy uses the same memory."""

    def __init__(self) -> None:
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._first = 0
        self._width = 0

    def take(self, policy: CataloguePolicy, dense: torch.optim.Adam) -> None:
        """Copy the rows that this rank holds; on rank 0 also the dense part, and a replicated table.

        Collective under FSDP: each tensor is gathered, one after the other, and rank 0 keeps it.
        """
        table, first = policy.table, ranks.rank() == 0
        self._first, self._width = table.first, table.width
        for kind, module in _modules(policy).items():
            self._copy(kind, module.state_dict(), first)
            self._copy(f"{kind}-optimizer", _optimizer_state(module, dense), first)
        self._copy("table", table.state(), table.sharded or first)

    def _copy(self, kind: str, tensors: Mapping[str, Tensor], keep: bool) -> None:
        for name, tensor in tensors.items():
            whole = ranks.whole(tensor.detach())
            if not keep:
                continue
            copies = self._copies.setdefault(kind, {})
            if name not in copies:
                copies[name] = torch.empty_like(whole, device="cpu", memory_format=torch.contiguous_format)
            copies[name].copy_(whole)

    def write(self, uri: str, state: Mapping[str, Any] | None) -> list[artifact.FileEntry]:
        """Write the copies, and ``state`` where given, into the folder ``uri``; returns the files' entries."""
        entries = [
            artifact.save_tensors(uri, f"{kind}.safetensors", tensors)
            for kind, tensors in self._copies.items()
            if kind != "table"
        ]
        entries += self._write_table(uri, self._copies.get("table"))
        if state is not None:
            storage.write_json(storage.join(uri, STATE), dict(state))
            entries.append(artifact.file_entry(uri, STATE))
        return entries

    def _write_table(self, uri: str, tensors: Mapping[str, Tensor] | None) -> Iterator[artifact.FileEntry]:
        rows = len(tensors["weight"]) if tensors else 0
        for start in range(0, rows, RANGE_ROWS):
            assert tensors is not None
            part = slice(start, min(start + RANGE_ROWS, rows))
            values = {name: value[part] if value.ndim else value for name, value in tensors.items()}
            name = f"{self._first + part.start:010d}-{self._first + part.stop:010d}.safetensors"
            yield artifact.save_tensors(uri, f"table-{name}", {"weight": values.pop("weight")[:, : self._width]})
            yield artifact.save_tensors(uri, f"table-optimizer-{name}", values)


def commit(uri: str, step: int, entries: Collection[artifact.FileEntry]) -> None:
    """Write the manifest: from here on the checkpoint exists."""
    files = sorted(entries, key=lambda entry: entry["path"])
    artifact.write_manifest(uri, KIND, FORMAT, {"step": step, CHECKSUM: _checksum(step, files)}, files)


def _checksum(step: Any, files: Any) -> str:
    return artifact.fingerprint([step, files])


def _manifest(uri: str) -> dict[str, Any]:
    """The manifest of a checkpoint, which vouches for itself too.

    Raises:
        InputError: no checkpoint, or one of another format; DamagedError: its manifest has changed.
    """
    place = storage.join(uri, artifact.MANIFEST)
    if not storage.exists(place):
        raise InputError(f"{uri}: no {KIND} here ({artifact.MANIFEST} is missing)")
    data = storage.read_bytes(place)
    try:
        found = json.loads(data.decode())
    except ValueError as problem:
        raise DamagedError(f"{place}: not valid JSON ({problem})") from problem
    ours = isinstance(found, dict) and (found.get("kind"), found.get("format")) == (KIND, FORMAT)
    if ours and found.get(CHECKSUM) != _checksum(found.get("step"), found.get("files")):
        raise DamagedError(f"{place}: does not agree with its own {CHECKSUM}; the file is damaged or was changed")
    return artifact.check_manifest(place, found, KIND, [FORMAT])


def _modules(policy: CataloguePolicy) -> dict[str, nn.Module]:
    """What is beside the table, by the name of its file."""
    found = {"dense": policy.network.backbone}
    if policy.network.head is not None:
        found["head"] = policy.network.head
    return found


def _optimizer_state(module: nn.Module, dense: torch.optim.Adam) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in dense.state[parameter].items()
    }


def find(uri: str) -> str:
    """The checkpoint that a policy's URI stands for: of a run folder, its policy/, policy/best or last, or itself.

    Raises:
        InputError: no checkpoint there, or a file of it is absent or of another size.
    """
    for place in ("", "policy/best", "policy/last", "best", "last"):
        candidate = storage.join(uri, *place.split("/")) if place else uri
        if storage.exists(storage.join(candidate, artifact.MANIFEST)):
            artifact.require_files(candidate, _manifest(candidate))
            return candidate
    raise InputError(
        f"{uri}: no policy here; expected a finished run's folder, its policy/best or policy/last, or a checkpoint"
    )


def read_state(uri: str) -> dict[str, Any]:
    """``state.json`` of a checkpoint, verified."""
    manifest = _manifest(uri)
    place = storage.join(uri, STATE)
    try:
        state = json.loads(artifact.read_verified(uri, manifest, STATE))
    except ValueError as problem:
        raise DamagedError(f"{place}: not valid JSON ({problem})") from problem
    assert isinstance(state, dict)
    return state


def require_policy(state: Mapping[str, Any], place: str) -> None:
    """Raise InputError where a checkpoint is a reward model's: its trunk is no longer the policy it was copied from."""
    if _of_rewards(state):
        raise InputError(f"{place} is a reward model, no policy; give the policy that it started from, or another one")


def _of_rewards(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is a reward model's: what its head says then is a reward, else the value of a state."""
    return bool(state["config"]["algorithm"]["name"] == "reward_model")


def fingerprint(uri: str) -> str:
    """What identifies a policy: the sha256 over the names and hashes of its files."""
    return artifact.fingerprint(_manifest(uri)["files"])


def load(uri: str, policy: CataloguePolicy, dense: torch.optim.Adam | None) -> list[str]:
    """Copy a checkpoint into a policy, and into its optimizers where ``dense`` is given; returns notes for the user.

    Every rank reads the dense part and the ranges of rows it needs, and waits for no other. Optimizer state of another
    kind than the policy's (Adam's for row-wise Adagrad, say) is left out and noted, as is a head that it has not, or
    one of states where the policy's is of rewards. A head that the policy has not is passed over.

    Raises:
        InputError: a file is absent, damaged, or of other sizes.
    """
    manifest, state, notes = _manifest(uri), read_state(uri), list[str]()
    there = {entry["path"] for entry in manifest["files"]}
    for kind, module in _modules(policy).items():
        if kind == "head" and ("head.safetensors" not in there or _of_rewards(state) != isinstance(module, RewardHead)):
            notes.append(f"{uri} has no such head: it starts from its initial values")
            continue
        _load_module(uri, manifest, kind, module)
        if dense is not None:
            saved = _verified(uri, manifest, f"{kind}-optimizer.safetensors")
            for name, value in _optimizer_state(module, dense).items():
                value.copy_(ranks.spread_like(saved[name], value))
    items, with_optimizer = int(state["items"]), dense is not None
    return [*notes, *_load_table(uri, manifest, policy, items, with_optimizer)]


def _load_module(uri: str, manifest: Mapping[str, Any], kind: str, module: nn.Module) -> None:
    saved, live = _verified(uri, manifest, f"{kind}.safetensors"), module.state_dict()
    if (bias := live.get("item_bias")) is not None and "item_bias" in saved:
        # Items that are new since then have no training events that the head could know of.
        saved["item_bias"] = pad(saved["item_bias"], (0, len(bias) - len(saved["item_bias"])))
    try:
        module.load_state_dict({name: ranks.spread_like(each, live.get(name, each)) for name, each in saved.items()})
    except RuntimeError as problem:
        raise InputError(
            f"{uri}: {kind}.safetensors does not fit this model: {str(problem).splitlines()[-1].strip()}"
        ) from problem


def _verified(uri: str, manifest: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    return artifact.parse_tensors(storage.join(uri, path), artifact.read_verified(uri, manifest, path))


@torch.no_grad()
def _load_table(
    uri: str, manifest: Mapping[str, Any], policy: CataloguePolicy, items: int, with_optimizer: bool
) -> list[str]:
    """Rows of the ``items`` that the checkpoint knows; those of later items stay as they are initialised."""
    table, state, notes = policy.table, policy.table.state(), set[str]()
    if items < table.items:
        notes.add(f"{table.items - items:,} items are new to the policy: their rows and optimizer state start anew")
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
    last = max(table.first, min(table.last, items + 1))
    if covered != last - table.first:
        raise InputError(f"{uri}: covers {covered} of the rows {table.first} to {last} of the item table")
    return sorted(notes)


def _copy_rows(target: Tensor, source: Tensor, here: slice, there: slice) -> None:
    if target.ndim == 0:
        target.copy_(source)
    else:
        target[here].copy_(source[there])


def committed(output: str) -> list[str]:
    """The checkpoints of a run, newest first. A folder without manifest does not count."""
    places = [storage.join(output, "checkpoints", folder) for folder in _folders(output)]
    return [place for place in places if storage.exists(storage.join(place, artifact.MANIFEST))]


def prune(output: str, keep: int, best: Collection[str]) -> None:
    """Delete all but the newest ``keep`` checkpoints and the ``best`` (names of folders).

    Folders without manifest, which interrupted attempts left behind, go too, so none may be in the making.
    """
    whole = [storage.name(place) for place in committed(output)]
    for folder in _folders(output):
        if folder not in {*whole[:keep], *(name for name in best if name in whole)}:
            delete(storage.join(output, "checkpoints", folder))


def tidy(output: str) -> None:
    """Delete the temporary files that killed processes left beside the files of a run."""
    for file in storage.list_leftovers(output):
        if not file.path.startswith(f".{LEASE}"):  # it is being renewed
            storage.delete(storage.join(output, file.path))


def delete(place: str) -> None:
    """Delete a checkpoint, its manifest first, so that no reader takes half of one for a whole."""
    if storage.exists(storage.join(place, artifact.MANIFEST)):
        storage.delete(storage.join(place, artifact.MANIFEST))
    storage.delete(place)


def _folders(output: str) -> list[str]:
    """Names of the checkpoints' folders, highest step first."""
    place = storage.join(output, "checkpoints")
    files = [*storage.list_files(place), *storage.list_leftovers(place)]
    names = {name for file in files if _FOLDER.fullmatch(name := file.path.split("/")[0])}
    return sorted(names, key=lambda name: (_step(name), name), reverse=True)


def _step(folder: str) -> int:
    match = _FOLDER.fullmatch(folder)
    assert match
    return int(match[1])


def publish(source: str, destination: str) -> None:
    """Copy a checkpoint to ``policy/best`` or ``policy/last``, manifest last; an earlier one there goes first.

    Raises:
        DamagedError: a file of the checkpoint is not what its manifest says; nothing is published then.
    """
    manifest = _manifest(source)
    delete(destination)
    for entry in manifest["files"]:
        place = storage.join(source, entry["path"])
        if storage.copy(place, storage.join(destination, entry["path"])) != entry["sha256"]:
            raise DamagedError(f"{place}: sha256 differs from {artifact.MANIFEST}; the file is damaged")
    storage.copy(storage.join(source, artifact.MANIFEST), storage.join(destination, artifact.MANIFEST))
