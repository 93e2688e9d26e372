"""Compare brains with models, from BIDS to RSA, topological RSA, encoding and a report."""

__version__ = "0.1.0"
