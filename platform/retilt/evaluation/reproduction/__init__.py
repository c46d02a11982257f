"""The report of a reproduction: statistics over seeds, verdicts, tables and figures. No Ray, no training.

``results`` has the layout of ``results.json``, which is the source of truth; ``report.write`` makes the views of it.
"""
