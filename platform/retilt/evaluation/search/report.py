"""The report of a λ search: ``search.json`` is the source; ``report.html`` and ``report.md`` are its views."""

from __future__ import annotations

from retilt import storage
from retilt.evaluation.search import sections, words
from retilt.evaluation.search.layout import FORMAT, KIND, Search, failed
from retilt.evaluation.views import files
from retilt.evaluation.views.files import Views

SEARCH, HTML, MARKDOWN, FIGURES = "search.json", files.HTML, files.MARKDOWN, files.FIGURES


def build(search: Search) -> Views:
    """The views of a search (layout in ``layout``), which gets kind and format; a pure function of it."""
    whole = {"kind": KIND, "format": FORMAT, **search}
    return files.views(whole, sections.document(whole))


def write(output: str, search: Search) -> None:
    """Write search and views into the folder ``output``, the source last: its presence means that all is there."""
    files.write(output, SEARCH, build(search))


def summary(search: Search) -> list[str]:
    """What the job ends with: the choice, what to doubt about it, its cost, where the report is, what to run next."""
    lines = [words.choice(search), *words.comparisons(search)]
    lines += [f"warning: {each}" for each in words.warnings(search)]
    lines += [f"failed: {each['name']}: {each.get('reason')}" for each in failed(search)]
    lines += [text for text in [words.cost(search)] if text]
    if output := search.get("output"):
        lines += [storage.join(output, name) for name in (HTML, MARKDOWN, SEARCH)]
    return lines + [f"next: {each}" for each in search.get("next") or []]
