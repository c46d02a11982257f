"""The report of a reproduction: ``results.json`` is the source; ``report.html`` and ``report.md`` are its views."""

from __future__ import annotations

from typing import Any, NamedTuple

from retilt import storage
from retilt.evaluation.reproduction import html, markdown, sections
from retilt.evaluation.reproduction.results import FORMAT, KIND, Results
from retilt.evaluation.reproduction.verdicts import judge

RESULTS, HTML, MARKDOWN, FIGURES = "results.json", "report.html", "report.md", "figures"


class Views(NamedTuple):
    """A report in every form."""

    results: dict[str, Any]
    """With kind, format and verdicts."""
    html: str
    """One file, pictures in it."""
    markdown: str
    """Refers to ``pictures`` in the folder ``figures`` beside it."""
    pictures: dict[str, bytes]
    """File name → PNG."""


def build(results: Results) -> Views:
    """The views of results (layout in ``results``); a pure function of them."""
    whole = {"kind": KIND, "format": FORMAT, **results, "verdicts": judge(results)}
    document = sections.document(whole)
    pictures = {f"{figure.name}.png": figure.png for figure in document.figures()}
    return Views(whole, html.render(document), markdown.render(document, FIGURES), pictures)


def write(output: str, results: Results) -> None:
    """Write results and views into the folder ``output``, the source last: its presence means that all is there."""
    views = build(results)
    for name, picture in views.pictures.items():
        storage.write_bytes(storage.join(output, FIGURES, name), picture)
    storage.write_bytes(storage.join(output, HTML), views.html.encode())
    storage.write_bytes(storage.join(output, MARKDOWN), views.markdown.encode())
    storage.write_json(storage.join(output, RESULTS), views.results)
