"""What reports are made of: a document and its two renderings, the look of figures and arms, and the files.

A report is a dict that is written as JSON, the source, and a pure function from it to a ``Document``.
"""
