"""The report of a λ search: what its trials reached, what was chosen and why. No Ray, no training.

``search`` has the layout of ``search.json`` (``layout``), which is the source of truth; ``report.write`` makes the
views of it.
"""
