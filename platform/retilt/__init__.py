"""retilt: aligns generative recommenders with logged rewards, at catalogue scale."""

__version__ = "0.1.0"
