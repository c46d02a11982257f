"""The nouns and protocols that every layer shares; they keep the sibling packages from importing each other.

Shape legend: B users, T events of the longest sequence in the batch, P supervised positions of the batch (row-major
order of ``supervised_BT``), K draws of a position, V items of the catalogue, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # every process imports this module, and those that prepare data need no torch
    import torch
    from torch import Tensor

PADDING = 0
"""Item index of padding; real items are 1 … V."""

MICROSECONDS = 1_000_000
"""Times are integers, microseconds since 1970-01-01 UTC; this many make a second."""


class RetiltError(Exception):
    """An error with a message for the user and the exit code of the job that it ends."""

    exit_code = 1
    on_all_ranks = False
    """Every rank has raised it, so none waits for another."""


class InputError(RetiltError, ValueError):
    """The input or the configuration is wrong: says what was wrong, where, and what would be right."""

    exit_code = 2


class DamagedError(InputError):
    """A file of an artifact is absent or not what its manifest says; an older artifact may still be whole."""


class StorageError(RetiltError, OSError):
    """A store could not be read or written, and retrying did not help."""

    exit_code = 3


class TrainingError(RetiltError):
    """Training could not continue."""

    exit_code = 4


class Stopped(RetiltError):
    """Ended early because somebody asked for it (SIGTERM); the same command continues. EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


ERRORS: Mapping[str, type[RetiltError]] = {
    each.__name__: each for each in (InputError, DamagedError, StorageError, TrainingError, Stopped)
}
"""By name: what crosses from one process to another is the name and the message."""


@dataclass(frozen=True)
class Batch:
    """A rank's share of one global batch: right-padded sequences of events, oldest first.

    ``N`` inputs need ``N + 1`` events: input position ``t`` predicts event ``t + 1``, knowing that event's time (the
    request time) but neither its item nor its reward. Invariants: ``item_BT[b, t] == PADDING`` exactly where
    ``t >= length_B[b]``; ``supervised_BT`` marks events that are *targets*, is False at padding and at every first
    event; a share may be empty (B = 0), and the rank still joins every collective with it.
    """

    item_BT: Tensor
    """int64, vocabulary index of each event, 0 at padding."""
    reward_BT: Tensor
    """float32, in the data set's unit, 0 at padding."""
    time_BT: Tensor
    """int64, microseconds; padding repeats the sequence's last time."""
    supervised_BT: Tensor
    """bool, events that are targets."""
    length_B: Tensor
    """int64, events of each sequence."""
    example_B: Tensor
    """int64, global row number of the user in the data set."""
    seen_item: Tensor | None = None
    """int64, evaluation only: items excluded from the ranking, position after position (distinct within one)."""
    seen_length_P: Tensor | None = None
    """int64, evaluation only: how many of ``seen_item`` belong to each supervised position."""
    untied_P: Tensor | None = None
    """bool, evaluation only: no other event of the user shares the target's time."""
    earlier_B: Tensor | None = None
    """int64, evaluation only: events of the user before the sequence, which the model does not see."""

    @property
    def target_item_P(self) -> Tensor:
        return self.item_BT[self.supervised_BT]

    @property
    def target_reward_P(self) -> Tensor:
        return self.reward_BT[self.supervised_BT]

    @property
    def positions(self) -> Positions:
        return Positions(self.target_item_P, self.target_reward_P, self.target_example_P)

    @property
    def target_example_P(self) -> Tensor:
        return self.example_B.repeat_interleave(self.supervised_BT.sum(1))

    def select(self, user: Tensor) -> Batch:
        """Some users of a training batch, by their rows."""
        assert self.seen_item is None, "an evaluation batch cannot be cut"
        return replace(self, **{name: value[user] for name, value in vars(self).items() if value is not None})

    def contexts(self, chosen_BT: Tensor) -> Batch:
        """The same sequences with fewer supervised positions: those of them that ``chosen_BT`` (bool) marks."""
        assert self.seen_item is None, "an evaluation batch cannot be cut"
        return replace(self, supervised_BT=self.supervised_BT & chosen_BT)

    def history(self) -> tuple[Tensor, Tensor]:
        """Distinct items of the window before each supervised position: ``seen_item`` and ``seen_length_P``, int64."""
        user_P, place_P = self.supervised_BT.nonzero(as_tuple=True)
        order_BT = self.item_BT.argsort(dim=1, stable=True)
        sorted_BT = self.item_BT.gather(1, order_BT)
        new_BT = sorted_BT != sorted_BT.roll(1, dims=1)
        new_BT[:, :1] = True
        first_BT = new_BT.scatter(1, order_BT, new_BT)
        column_T = order_BT.new_ones(self.item_BT.shape[1]).cumsum(0) - 1
        seen_PT = first_BT[user_P] & (column_T < place_P[:, None])
        return self.item_BT[user_P][seen_PT], seen_PT.sum(1)

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on ``device``."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Loss:
    """A sum over *this rank's* positions and what to divide it by; never a mean.

    The step sums ``count`` over ranks and back-propagates ``total * world / count``, because DDP, FSDP2 and TorchRec
    each average gradients over ranks.
    """

    total: Tensor
    """Scalar, differentiable: the sum of the weighted loss over this rank's positions."""
    count: Tensor
    """Scalar without gradient: what the sum over all ranks is divided by (trained positions, or Σw)."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars without gradient, each a *sum* over this rank's positions, logged as means over those of all ranks.

    ``positions`` is one of them where not all of the batch's positions take part.
    """


@dataclass(frozen=True)
class Statistics:
    """What is fitted to training events before the first step, equal on all ranks."""

    positions: int
    """Trained positions of an epoch (after truncation to the model's window)."""
    reward_min: float
    reward_max: float
    reward_mean: float
    mean_weight: float = 1.0
    """Mean of the algorithm's unnormalised weight over the trained positions."""
    threshold: float = 0.0
    """Smallest reward that counts as top rated (``top_rated`` only)."""
    reward_sd: float = 0.0
    reward_ranks: list[list[float]] = field(default_factory=list)
    """Pairs (reward, mid-rank between 0 and 1), ascending; only where an algorithm ranks rewards."""
    log_weight_max: float = 0.0
    """Largest logarithm of an unnormalised weight, where only the users' own events tell it (``exp_rsft``)."""
    trajectories: int = 0
    """Users with trained positions, under ``exp_rsft`` with ``level=trajectory`` as the two that follow."""
    return_mean: float = 0.0
    """Mean over trajectories of the return, in the unit that the rewards were transformed to."""
    return_sd: float = 0.0


class Likelihood(Protocol):
    """π(a | s) at the P supervised positions of a batch, exact or estimated. All that offline algorithms see."""

    @property
    def head_P(self) -> Tensor | None:
        """What the network's head, if it has one, says of each position: a state's value, or the target's reward."""
        ...

    def log_prob(self, item: Tensor) -> Tensor:
        """Log-probability of one item per position, (P,), or of several, (P, K); float32, differentiable. Collective.

        An estimated one knows the targets alone.
        """
        ...


class Distribution(Likelihood, Protocol):
    """π(· | s) over the whole catalogue at the P supervised positions of a batch, exact. All that algorithms see."""

    def entropy(self) -> Tensor:
        """In nats, shape (P,), differentiable. Collective over ranks."""
        ...

    def kl(self, reference: Any) -> Tensor:
        """KL(π ‖ reference) in nats, shape (P,), differentiable by π alone. Collective over ranks."""
        ...

    def kl_and_entropy(self, reference: Any) -> tuple[Tensor, Tensor]:
        """``kl``, and the entropy without a gradient, from one pass over the catalogue. Collective over ranks."""
        ...

    def at(self, kept_P: Tensor) -> Distribution:
        """The same at some of the positions; ``kept_P`` bool."""
        ...

    def sample(self, draws: int, key_P: Tensor, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """``draws`` independent items of each position, none of the seen ones, int64 (P, draws). Collective.

        A function of π and the int32 ``key_P`` alone: the same on any number of workers.
        """
        ...

    def unseen(self, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """Probability of all items but the seen ones, (P,). Collective."""
        ...

    def ranks(self, item_P: Tensor, seen_item: Tensor, seen_length_P: Tensor) -> Tensor:
        """Exact rank (1 = best) of one item per position among active items without the seen ones, shape (P,), int64.

        The item itself is never excluded; among equal scores it is ranked last. Collective over ranks.
        """
        ...

    def top_k(self, k: int, seen_item: Tensor, seen_length_P: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and items (int64) of the ``k`` best active, unseen items of each position, (P, k) each, best first.

        Item 0 fills up where there are fewer. Collective over ranks.
        """
        ...


class Policy(Protocol):
    """A generative recommender: the only forward is from a batch to distributions at its supervised positions."""

    def __call__(self, batch: Batch) -> Likelihood:
        """What training descends: exact or, from drawn negatives, estimated."""
        ...


class ExactPolicy(Policy, Protocol):
    """A policy that can be evaluated."""

    def exact(self, batch: Batch) -> Distribution:
        """Without dropout and gradients. Collective over ranks."""
        ...


class RewardModel(Protocol):
    """r̂(s, a), frozen."""

    def score(self, batch: Batch, item_PK: Tensor) -> Tensor:
        """Predicted reward of items at the supervised positions, (P, K), float32, in the data's unit. Collective."""
        ...


@dataclass(frozen=True)
class Companions:
    """The frozen models that an online objective learns from."""

    reference: ExactPolicy
    """The policy that post-training started from."""
    reward: RewardModel


@dataclass(frozen=True, kw_only=True)
class Explored(Batch):
    """A batch and what the policy tried at its supervised positions, from before the first pass over it."""

    item_PK: Tensor
    """int64, items drawn from the policy."""
    reward_PK: Tensor
    """float32, what the reward model gives them, in the data's unit."""
    log_old_PK: Tensor
    """Their log-probability under the policy that drew them."""
    unseen_P: Tensor
    """The probability that it gave to all that can be drawn: the items that are not in the history."""
    log_reference_PK: Tensor
    """Their log-probability under the reference."""
    value_P: Tensor | None
    """The value head's estimate before the first pass, in the data's unit; None without one."""
    reference: Any
    """The reference's ``Distribution`` at the same positions."""


@dataclass(frozen=True)
class Positions:
    """Logged examples (s, a, r) without their histories; a user's are consecutive and complete (of its window)."""

    item_P: Tensor
    """int64."""
    reward_P: Tensor
    """float32, in the data's unit."""
    example_P: Tensor
    """int64, the user."""

    @property
    def user_P(self) -> Tensor:
        """int64, 0 for the first user, 1 for the next."""
        begins_P = self.example_P != self.example_P.roll(1)
        begins_P[:1] = True
        return begins_P.cumsum(0) - 1


class Algorithm(Protocol):
    """An objective; implementations are frozen pydantic models whose fields are the hyper-parameters."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        ...

    def check(self, statistics: Statistics) -> None:
        """Raise InputError where the rewards rule the method out (negative rewards, overflow)."""
        ...

    def weight(self, positions: Positions, statistics: Statistics) -> Tensor:
        """Unnormalised weight of each trained position, shape (P,), float32; its mean is fitted before training."""
        ...

    def loss(self, policy: Policy, batch: Batch, statistics: Statistics) -> Loss:
        """The objective on one rank's share of a batch."""
        ...


class Reporter(Protocol):
    """All that the training loop sees of where it runs: Ray Train in production, a list in tests."""

    def progress(self, update: Mapping[str, Any]) -> None:
        """Show a line of progress or a ``note``; or a checkpoint of step ``committed`` stands. Never a collective."""
        ...

    def stop_requested(self) -> bool:
        """Whether the run should end at the next step with a checkpoint. Asked every step: never waits."""
        ...

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Publish an epoch's metrics; every rank calls it the same number of times."""
        ...


def nearest(name: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
