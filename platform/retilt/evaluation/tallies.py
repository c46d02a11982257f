"""A tally as an artifact: what an evaluated policy needs to be compared with any other later, without ranking again.

``<uri>/sums.safetensors`` holds ``Tally.sums`` (1 + R, G, C), float64; the manifest says what its axes are and which
policy it is of. A tally is whole if and only if its manifest is there. Size: 8 · (1 + R) · G · C bytes, whatever the
number of users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from retilt import artifact, storage
from retilt.evaluation.statistics import COUNTS, Tally
from retilt.types import DamagedError

KIND, FORMAT, SUMS = "tally", 1, "sums.safetensors"


def write(uri: str, tally: Tally, identity: Mapping[str, Any]) -> None:
    """Write a tally over all ranks into the folder ``uri``, the manifest last.

    Args:
        uri: folder of the artifact.
        tally: after ``sum_over_ranks``.
        identity: JSON-like; which policy, and on which targets.
    """
    entry = artifact.save_tensors(uri, SUMS, {"sums": tally.sums})
    axes = {"replicates": tally.replicates, "groups": list(tally.groups), "columns": list(tally.columns)}
    body = {**axes, "seed": tally.seed, "identity": dict(identity)}
    artifact.write_manifest(uri, KIND, FORMAT, body, [entry])


def read(uri: str) -> tuple[Tally, dict[str, Any]]:
    """The tally in the folder ``uri``, and its identity.

    Raises:
        InputError: no tally there.
        DamagedError: the file is not what the manifest says.
    """
    manifest = artifact.read_manifest(uri, KIND, [FORMAT])
    place = storage.join(uri, SUMS)
    sums = artifact.parse_tensors(place, artifact.read_verified(uri, manifest, SUMS))["sums"]
    names = manifest["columns"][len(COUNTS) :]
    tally = Tally(manifest["groups"], manifest["replicates"], manifest["seed"], names=names)
    if sums.shape != tally.sums.shape or sums.dtype != torch.float64:
        raise DamagedError(f"{place}: {tuple(sums.shape)} {sums.dtype}, the manifest says {tuple(tally.sums.shape)}")
    tally.sums = sums
    return tally, manifest["identity"]
