"""What a policy or a reward model was trained on, and whether a held-out part is still held out for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from retilt.data.dataset import origin
from retilt.data.split import SHORTEST, bounds_array
from retilt.types import InputError

Part = Literal["validation", "test"]


def check_lineage(
    policy_lineage: Sequence[Mapping[str, Any]], dataset_manifest: Mapping[str, Any], part: Part
) -> str | None:
    """Refuse a part that the policy or any ancestor trained on; None where it is known to be unseen, else a warning.

    Each entry of a lineage says ``name``, ``data`` (the data set's ``fingerprint``), ``origin`` (of a derived one: the
    fingerprint of the data set that it was derived from), ``source`` (its ``source_fingerprint``: the events it was
    prepared from), ``split`` ({"name", "k"}) and ``protocol``. For each:

    - the same data set, or one derived from the same, whose users and cuts are the same (data/derive.py): ``select``
      trained up to the validation cut, ``refit`` up to the test cut. So test is unseen by both, and validation is
      refused after ``refit``, where it would measure memory;
    - the same events in another data set (another split or other filters): refused where for some length of sequence
      the ancestor's training events reach into the part (trained under ``last``, tested under ``last_k``). Otherwise
      unverified, because filters move a user's cuts;
    - other events: unverified. Cuts are per user, so nothing says that the part is later than what was trained on.

    Raises:
        InputError: names the ancestor and what would be right.
    """
    trained, unverified = _compared(policy_lineage, dataset_manifest, part)
    if trained:
        ancestor, same_data = trained[0]
        raise InputError(f"{_knows(ancestor, dataset_manifest, part, same_data)}; {_remedy(part, same_data)}")
    return unverified


def judge_warning(lineage: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any], part: Part) -> str | None:
    """What a report says of a reward model that only scores draws; None where the part is known to be unseen.

    Nothing is measured of it on the part, and a judge that knows more is no worse a judge. But it remembers what the
    logged choices there were rewarded with, and trusts them more than others: so it is said, and not refused.

    Args:
        lineage: of the reward model, as for ``check_lineage``.
        manifest: of the data set.
        part: where the draws are made.
    """
    trained, unverified = _compared(lineage, manifest, part)
    if not trained:
        return unverified
    found = " and ".join(_knows(ancestor, manifest, part, same_data) for ancestor, same_data in trained)
    return f"{found}; its scores remember what the choices logged there were rewarded with"


def _compared(
    lineage: Sequence[Mapping[str, Any]], dataset_manifest: Mapping[str, Any], part: Part
) -> tuple[list[tuple[Mapping[str, Any], bool]], str | None]:
    """Ancestors that trained on the part, each with whether on the same data set; a warning of those of other data."""
    trained, unverified = [], []
    for ancestor in lineage:
        same_data = ancestor.get("origin", ancestor["data"]) == origin(dataset_manifest)
        source = ancestor.get("source")
        same_events = same_data or (source is not None and source == dataset_manifest.get("source_fingerprint"))
        if same_events and _reaches(ancestor, int(dataset_manifest["split"]["k"]), part):
            trained.append((ancestor, same_data))
        elif not same_data:
            what = "the same events, prepared otherwise" if same_events else "other events"
            unverified.append(f"'{ancestor['name']}' ({what})")
    if not unverified:
        return trained, None
    return trained, (
        f"unverified: trained on another data set than this one by {', '.join(dict.fromkeys(unverified))}; "
        f"its training events may include {part} targets"
    )


def _reaches(ancestor: Mapping[str, Any], k: int, part: Part) -> bool:
    """Whether, for any length, the ancestor's training events go beyond the first event of the part."""
    trained_k = int(ancestor["split"]["k"])
    length_N = np.arange(SHORTEST, 4 * max(k, trained_k) + 1 + SHORTEST)
    trained_N = bounds_array(length_N, trained_k)[0 if ancestor["protocol"] == "select" else 1]
    first_N = bounds_array(length_N, k)[0 if part == "validation" else 1]
    return bool((trained_N > first_N).any())


def _knows(ancestor: Mapping[str, Any], manifest: Mapping[str, Any], part: Part, same_data: bool) -> str:
    what = f"'{ancestor['name']}' trained on {part} events of this data set: its protocol was {ancestor['protocol']}"
    if same_data:
        return what
    theirs, ours = (f"{split['name']} (k = {split['k']})" for split in (ancestor["split"], manifest["split"]))
    return f"{what} and its split {theirs}, the split here is {ours}"


def _remedy(part: Part, same_data: bool) -> str:
    if not same_data:
        return "use a data set with the split of its training"
    if part == "validation":
        return "use a policy (and initial policies) trained with protocol=select; to evaluate this one, part=test"
    return "use a policy trained with protocol=select or refit"
