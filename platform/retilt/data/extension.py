"""A vocabulary that extends an earlier data set's: old items keep their numbers, whether or not they still occur."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retilt.data.dataset import Dataset
from retilt.types import InputError


@dataclass(frozen=True)
class Earlier:
    """The vocabulary that a new data set begins with: the items of ``dataset``, which may itself have extended one."""

    dataset: Dataset

    @classmethod
    def open(cls, uri: str) -> Earlier:
        """The vocabulary of the data set in the folder ``uri``. Raises InputError: no data set, or a damaged one."""
        return cls(Dataset.open(uri))

    def require_ids(self, kind: str) -> None:
        """Refuse a source whose item ids are of another type; ``kind`` is ``int64`` or ``string``."""
        found = str(self.dataset.item_type)
        if found != kind:
            raise InputError(
                f"vocabulary = {self.dataset.uri}: its item ids are {found}, those of the source {kind}; give a data "
                "set of the same catalogue"
            )

    @cached_property
    def item(self) -> Any:
        """Arrow chunked array (items,): the ids in their order, verified against the manifest."""
        self.dataset.verify([part["path"] for part in self.dataset.manifest["vocabulary"]])
        return pa.chunked_array(list(self.dataset.item_ids()), type=self.dataset.item_type)

    @property
    def entry(self) -> dict[str, Any]:
        """The new manifest's ``extends``."""
        dataset = self.dataset
        return {
            "vocabulary_sha256": dataset.vocabulary_sha256,
            "items": dataset.items,
            "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        }

    def changes(self, kept: npt.NDArray[np.int64]) -> dict[str, int]:
        """How many items are new, and how many of the earlier ones stayed, went and came back.

        ``kept`` (V,) is the number of kept events of each item of the new vocabulary.
        """
        before = self.dataset.active().numpy()[1:]
        now = kept[: len(before)] > 0
        return {
            "kept": int((before & now).sum()),
            "new": len(kept) - len(before),
            "retired": int((before & ~now).sum()),
            "returned": int((~before & now).sum()),
        }
