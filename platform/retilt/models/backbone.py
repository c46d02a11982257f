"""What every backbone shares: settings, and how it is called. The rest of the code knows nothing else of it."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field
from torch import nn

from retilt.settings import Settings


class Model(Settings):
    """Settings of a backbone; a subclass has its ``name``, further sizes and the module (``hstu``, ``sasrec``)."""

    name: str
    max_length: int = Field(200, ge=1, le=8192)
    """Events of a history that the model sees (N)."""
    width: int = Field(50, ge=1, le=4096)
    """Width of an item's embedding (D)."""
    blocks: int = Field(2, ge=1, le=64)
    """Number of layers."""
    heads: int = Field(1, ge=1, le=64)
    """Attention heads of a layer."""
    temperature: float = Field(0.05, gt=0, le=10)
    """Divisor of the cosine similarity in the logits."""

    @property
    @abstractmethod
    def kept_per_position(self) -> int:
        """Numbers of 4 bytes that a training step keeps for each position of a longest history until its backward."""

    @abstractmethod
    def build(self, rate: float) -> nn.Module:
        """A freshly initialised backbone with dropout ``rate``; uses torch's global generator.

        Called with item embeddings ``x_BTD`` (zero at padding, which is on the right), ``time_BT`` (B, T + 1; the times
        of inputs and of the last target), ``valid_BT`` (no padding) and ``key_BT`` (seeds dropout; None: no dropout) it
        returns hidden states (B, T, D), of which position t knows the events up to t and at most the time of t + 1.
        With a further argument, ``trying.Tried``, it returns the states of the tried items as well, (B, C, D): each
        knows the events before its place, their times, its item and its own time (the place's).
        """
