"""The report as Markdown, its pictures as files beside it."""

from __future__ import annotations

from collections.abc import Iterator

from retilt.evaluation.markdown import cell, pipe_table
from retilt.evaluation.views.document import Block, Bullets, Code, Document, Figure, Table, Warned


def render(document: Document, folder: str) -> str:
    """Markdown of a document; ``folder`` holds the pictures, relative to where the text will lie."""
    lines = [f"# {_text(document.title)}"]
    for block in document.lead:
        lines += ["", *_block(block, folder)]
    for section in document.sections:
        lines += ["", f"## {_text(section.title)}"]
        for block in section.blocks:
            lines += ["", *_block(block, folder)]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """Plain text, in which nothing starts a tag or ends a line."""
    return cell(text).replace("<", "&lt;")


def _block(block: Block, folder: str) -> Iterator[str]:
    match block:
        case Table():
            yield from _table(block)
        case Figure():
            yield f"![{_text(block.caption)}]({folder}/{block.name}.png)"
            yield ""
            yield _text(block.caption)
        case Bullets():
            yield from (f"- {_text(item)}" for item in block.items)
        case Warned():
            yield f"> **Warning:** {_text(block.text)}"
        case Code():
            yield from ("```", block.text, "```")
        case _:
            yield _text(block)


def _table(table: Table) -> Iterator[str]:
    rows = [
        [
            f"**{text}**" if (i, j) in table.bold and text else text
            for j, text in enumerate(each.replace("<", "&lt;").replace("*", "&#42;") for each in row)
        ]
        for i, row in enumerate(table.rows)
    ]
    lines = list(pipe_table(table.header, rows))
    if table.prose:
        lines[1] = "|---" * len(table.header) + "|"
    yield from lines
