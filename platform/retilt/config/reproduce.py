"""jobs/reproduce.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retilt.config.sections import Storage
from retilt.settings import Settings, free, later
from retilt.types import InputError, nearest

PresetName = Literal["ml-100k", "ml-1m", "ml-20m", "amazon-books", "watch_time", "theory"]

TUNED = ("bc_continued", "exp_rsft", "top_rated", "rsft", "dpo", "ppo")
"""Methods that are tuned, all by the same number of validation trials; the first three tell most of the story."""
PAPER_LIKE = ("dpo_paper", "ppo_paper")
"""The same methods with the settings that the paper seems to have used."""
TILTS = ("tilt_item", "tilt_rm")
"""BC tilted without training; of the controls of exp_rsft."""
PREDICTED = ("exp_rsft_predicted", "exp_rsft_advantage")
"""exp_rsft on rewards that a reward model has made of the logged ones."""
CONTROLS = ("exp_rsft_permuted", "exp_rsft_item_mean", "exp_rsft_at_rsft_ess", "exp_rsft_trajectory", *PREDICTED)
"""exp_rsft with one thing changed that could explain its gain away."""
ONLINE = ("dpo", "ppo", "dpo_paper", "ppo_paper")
"""What learns from a reward model's opinion of the policy's own choices."""
ARMS = (*TUNED, *PAPER_LIKE, *TILTS, *CONTROLS)
"""Everything that is compared with ``bc``, which is always there."""


class ReproduceConfig(Settings):
    """jobs/reproduce.py: a preset → every method tuned, repeated with seeds, and one report."""

    preset: PresetName
    """What is reproduced: a data set of the paper with its sizes and grids, the simulated `watch_time`, or `theory`."""
    output: str = free(..., min_length=1)
    """URI of the folder of all runs, results.json and the report; the same command continues."""
    dataset: str | None = Field(None, min_length=1)
    """URI of a data set that jobs/prepare.py wrote, in place of the preset's source."""
    seeds: int | list[int] = free(1)
    """How many seeds (0, 1, …), or which; methods are tuned on the first, the others take what was chosen there. Of
    `theory` the number of worlds, 20 at least."""
    trials: int | None = Field(None, ge=4, multiple_of=2)
    """Validation trials of each method; null takes the preset's number."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of post-training at most; null takes the preset's number, or the paper's with `paper_epochs`."""
    pretraining_epochs: int | None = Field(None, ge=1)
    """Epochs of behaviour cloning, of which validation chooses; null takes the preset's number."""
    paper_epochs: bool = later(False)
    """Post-train for as long as the paper trains: 30 epochs on MovieLens 1M, 12 on 20M, 10 on Amazon Books."""
    arms: list[str] | None = free(None, min_length=1)
    """What is compared with BC, to run a part; null runs everything that the preset has."""
    floor_times: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Minutes to whose multiples times are rounded down when the data set is prepared (`time_floor` of prepare)."""
    sweep: bool = free(True)
    """Whether λ of exp_rsft is swept over its grid at the best and the last epoch, for the curve of quality over λ."""
    replicates: int = Field(1000, ge=200)
    """Bootstrap replicates (users are resampled) behind each 95% interval; Holm's p of four needs 159 to reach .05."""
    workers: int = free(1, ge=1)
    """Processes of each run; runs stand side by side where the cluster has room."""
    threads: int | None = free(1, ge=1)
    """Threads of each worker; null divides the cores of a node by its workers, so that one run takes the whole node."""
    device: Literal["auto", "cpu", "cuda"] = free("auto")
    """auto: CUDA where there is one."""
    hang_seconds: int = free(300, ge=5)
    """Seconds without an answer after which a worker counts as hung."""
    stop_seconds: int = free(60, ge=1)
    """Grace period between SIGTERM and SIGKILL, in which last checkpoints are written (Kubernetes, ray job stop)."""
    storage: Storage = free(Storage())

    @field_validator("seeds", mode="before")
    @classmethod
    def _some_seeds(cls, value: Any) -> Any:
        if type(value) is int and value < 1:
            raise InputError(f"{value} seeds: at least 1 is needed, and 2 for an interval over seeds")
        if isinstance(value, list):
            whole = [each for each in value if type(each) is int and each >= 0]
            if not value or len(whole) < len(value) or len(set(whole)) < len(whole):
                raise InputError(f"{value}: a list of seeds holds different whole numbers of at least 0")
        return value

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, value: list[str] | None) -> list[str] | None:
        for arm in value or ():
            if arm not in ARMS:
                raise InputError(f"no arm is called {arm!r}{nearest(arm, ARMS)}; there are {', '.join(ARMS)}")
            for other in ("exp_rsft", "rsft") if arm == "exp_rsft_at_rsft_ess" else ("exp_rsft",):
                if arm in CONTROLS and other not in (value or ()):
                    raise InputError(
                        f"{arm} is a control, with settings chosen for {other}; list {other} among the arms"
                    )
        return value

    @model_validator(mode="after")
    def _times_are_floored_when_prepared(self) -> ReproduceConfig:
        if self.dataset is not None and self.floor_times is not None:
            raise InputError(
                f"floor_times = {self.floor_times:g} belongs to the preparation of a data set, and dataset = "
                f"{self.dataset} is prepared; prepare it with time_floor={self.floor_times:g}, or leave one out"
            )
        return self

    @property
    def seed_list(self) -> list[int]:
        """The seeds, the first of which methods are tuned on."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)
