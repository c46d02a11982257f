"""A report as a list of sections of blocks, which the Markdown and the HTML view both render: they cannot disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Plain text cells; the first column names the row, the others are figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) to stress."""
    prose: bool = False
    """The cells are sentences, not figures."""


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows in words."""

    name: str
    """Of its file, without the ending."""
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Warned:
    """A sentence that nobody should overlook."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    text: str


Block = str | Table | Figure | Bullets | Warned | Code
"""A ``str`` is a paragraph of plain text."""


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """What a view shows, in order; ``lead`` comes before the first heading."""

    title: str
    lead: Sequence[Block]
    sections: Sequence[Section]

    def figures(self) -> list[Figure]:
        """All pictures, in order."""
        blocks = [*self.lead, *(block for section in self.sections for block in section.blocks)]
        return [block for block in blocks if isinstance(block, Figure)]


def shown(name: str, caption: str, png: bytes | None) -> list[Block]:
    """A figure as blocks; none where there is no picture."""
    return [] if png is None else [Figure(name, caption, png)]


def told(table: Table | None, sentence: str) -> list[Block]:
    """A table below the sentence that introduces it; nothing where there is no table."""
    return [] if table is None else [sentence, table]
