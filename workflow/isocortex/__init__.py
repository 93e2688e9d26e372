"""Compare brains with models: preprocessing, single-trial GLM, features, RSA, topology, encoding, report."""

__version__ = "0.1.0"
