"""A report in every form, and its files: the source, ``report.html``, ``report.md`` and ``figures/``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from retilt import storage
from retilt.evaluation.views import html, markdown
from retilt.evaluation.views.document import Document

HTML, MARKDOWN, FIGURES = "report.html", "report.md", "figures"


class Views(NamedTuple):
    """A report in every form."""

    source: dict[str, Any]
    """JSON-like; the others follow from it."""
    html: str
    """One file, pictures in it."""
    markdown: str
    """Refers to ``pictures`` in the folder ``figures`` beside it."""
    pictures: dict[str, bytes]
    """File name → PNG."""


def views(source: Mapping[str, Any], document: Document) -> Views:
    """The document of a source in both forms."""
    pictures = {f"{figure.name}.png": figure.png for figure in document.figures()}
    return Views(dict(source), html.render(document), markdown.render(document, FIGURES), pictures)


def write(output: str, name: str, report: Views) -> None:
    """Write a report into the folder ``output``, the source last as ``name``: its presence means that all is there."""
    for picture, data in report.pictures.items():
        storage.write_bytes(storage.join(output, FIGURES, picture), data)
    storage.write_bytes(storage.join(output, HTML), report.html.encode())
    storage.write_bytes(storage.join(output, MARKDOWN), report.markdown.encode())
    storage.write_json(storage.join(output, name), report.source)
