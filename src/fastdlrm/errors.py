"""Every error a user can cause, as one tree.

    FastDLRMError
    ├── ConfigError       a preset, file or override is wrong
    ├── DataError         an input file or a dataset is wrong
    ├── PlanError         no placement of the tables fits
    ├── CheckpointError   a checkpoint is missing, damaged or of another model
    ├── ExportError       an exported model cannot be written or read
    ├── ServeError        a server cannot start, or failed on a right request
    ├── LoadError         a load run could not be made
    ├── BenchError        a measurement could not be made
    └── RequestError      a prediction request cannot be answered
        ├── NotFound          it names a model or version that is not served
        ├── Overloaded        it would not be answered in time: try later
        └── DeadlineExceeded  its deadline passed while it waited

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


class ServeError(FastDLRMError):
    """A server cannot start, or failed on a right request."""


class LoadError(FastDLRMError):
    """A load run could not be made: no server, refused requests, or a generator that broke."""


class BenchError(FastDLRMError):
    """A measurement could not be made: a process of it ended, or it has no sample."""


class RequestError(FastDLRMError):
    """A prediction request cannot be answered; wrong, where no subclass says otherwise."""


class NotFound(RequestError):
    """A request names a model or a version that is not served."""


class Overloaded(RequestError):
    """A right request that would not be answered in time; refused before it waits.

    Attributes:
        retry_after_s: When to try again.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """A right request whose deadline passed while it waited."""
