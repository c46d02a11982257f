"""Sections that several jobs share."""

from __future__ import annotations

from retilt.settings import Settings, free


class Storage(Settings):
    """What the stores behind the URIs are like."""

    shared_filesystem: bool = free(False)
    """The local paths given are on a file system that every node of the cluster mounts (NFS)."""


class Checkpoint(Settings):
    """How the run can be continued; beside these, a checkpoint is written at the end of every epoch and on SIGTERM."""

    keep: int = free(2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: int = free(1, ge=1)
    """Checkpoints kept beside them under `protocol=select`: those of the best epochs by `selection_metric`."""
    every_seconds: float | None = free(120.0, gt=0, allow_inf_nan=False)
    """Seconds of training between two checkpoints, beside a validation all that a killed run repeats; null: none."""
    every_steps: int | None = free(None, ge=1)
    """Steps between two checkpoints; null: none by steps. One that is still being written is not overtaken."""


class Numerics(Settings):
    """What is done when arithmetic or memory goes wrong; none of it changes a run in which nothing does."""

    max_skipped: int = free(5, ge=1)
    """Steps in a row that may be skipped because a loss or a gradient is not finite; with one more the run ends."""
    spike: float | None = free(20.0, gt=0, allow_inf_nan=False)
    """Deviations above the recent median at which a loss sends the run back to its last checkpoint; null: never."""
    compare_every: int = free(100, ge=1)
    """Steps between two comparisons of the workers' copies of the parameters and their optimizer's state."""
