"""The report of a reproduction: ``results.json`` is the source; ``report.html`` and ``report.md`` are its views."""

from __future__ import annotations

from retilt.evaluation.reproduction import sections
from retilt.evaluation.reproduction.results import FORMAT, KIND, Results
from retilt.evaluation.reproduction.verdicts import judge
from retilt.evaluation.views import files
from retilt.evaluation.views.files import Views

RESULTS, HTML, MARKDOWN, FIGURES = "results.json", files.HTML, files.MARKDOWN, files.FIGURES


def build(results: Results) -> Views:
    """The views of results (layout in ``results``), which get kind, format and verdicts; a pure function of them."""
    whole = {"kind": KIND, "format": FORMAT, **results, "verdicts": judge(results)}
    return files.views(whole, sections.document(whole))


def write(output: str, results: Results) -> None:
    """Write results and views into the folder ``output``, the source last: its presence means that all is there."""
    files.write(output, RESULTS, build(results))
