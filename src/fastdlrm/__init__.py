"""Deep learning recommendation models, from raw click logs to calibrated predictions."""

__version__ = "0.1.0"
