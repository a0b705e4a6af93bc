"""Every error a user can cause, as one tree.

    FastDLRMError
    ├── ConfigError       a preset, file or override is wrong
    ├── DataError         an input file or a dataset is wrong
    ├── PlanError         no placement of the tables fits
    ├── CheckpointError   a checkpoint is missing, damaged or of another model
    ├── ExportError       an exported model cannot be written or read
    └── RequestError      a prediction request is wrong
        └── Overloaded    a right request that cannot be served in time

A message says where, what was found, what is allowed and what to do.
"""


class FastDLRMError(Exception):
    """Root of the tree; the command line prints it without a traceback."""


class ConfigError(FastDLRMError):
    """A preset, config file or override is wrong."""


class DataError(FastDLRMError):
    """An input file or a dataset is wrong."""


class PlanError(FastDLRMError):
    """No placement of the embedding tables fits."""


class CheckpointError(FastDLRMError):
    """A checkpoint is missing, damaged or belongs to another model."""


class ExportError(FastDLRMError):
    """An exported model cannot be written or read."""


class RequestError(FastDLRMError):
    """A prediction request is wrong."""


class Overloaded(RequestError):
    """A right request that cannot be served in time."""
