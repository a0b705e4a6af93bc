"""What the manifest of an exported model says.

MODEL/manifest.json      kind exported, see `ExportedManifest`
MODEL/tables.bin         rows of all tables, one after the other, see `fastdlrm.export.tables`
MODEL/vocab/             the vocabularies of the encoding, for reading them
MODEL/vocabularies.index the same as hash tables, to be mapped
MODEL/mlp.safetensors    the MLPs in float32, whatever they compute in
MODEL/golden.arrow       raw rows as text, null where missing, and `__score`: checked at every load
MODEL/warmup.arrow       more raw rows: to warm a server with, and for those who test it
MODEL/programs/          compiled forms of the MLPs, where there are any
MODEL/model.onnx         the model with its tables as one ONNX file, where it was asked for
"""

from typing import Literal

import msgspec

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.manifest import Artifact
from fastdlrm.contracts.schema import Schema

TableDtype = Literal["fp32", "bf16", "int8", "int4"]
"""Of the rows of tables. int8: a code a number and one scale a row; int4: half a byte a number, a
scale and an offset a row."""

MlpDtype = Literal["fp32", "bf16", "int8"]
"""What the products of the MLPs are computed in."""

CompiledKind = Literal["aoti", "onnx"]
"""aoti: a shared library made by torch's Inductor; onnx: for ONNX Runtime."""

ProgramKind = Literal["eager", "aoti", "onnx"]
"""What computes the part after the lookup; eager: torch, operator by operator."""

CalibrationKind = Literal["none", "platt", "isotonic"]

SCORE = "__score"
"""Column of golden.arrow beside the raw columns; no raw column is expected to be called so."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What turns a logit into the probability that is served."""

    kind: CalibrationKind = "none"
    """none: the logistic function; platt: that of `slope` * logit + `intercept`; isotonic: linear
    between knots."""
    slope: float = 1.0
    intercept: float = 0.0
    knot_logits: tuple[float, ...] = ()
    """Ascending."""
    knot_probabilities: tuple[float, ...] = ()
    """At the knots, ascending; constant beyond the first and the last."""
    negative_rate: float = 1.0
    """Share of the negatives that training saw; 1 where it saw all. Below 1 a probability p becomes
    p / (p + (1 - p) / negative_rate), before calibration.

    Source: He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook."""


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """One precision on the test split, against the float32 model."""

    tables: TableDtype
    mlp: MlpDtype
    tables_bytes: int
    max_logit_difference: float
    """From the float32 model, before calibration."""
    auc: float | None
    log_loss: float
    ne: float | None
    calibration: float | None
    """Mean prediction over mean label, after calibration where there is one."""
    num_rows: int


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What golden scores depend on in their last bits."""

    cpu: str
    """Model name of the processor."""
    torch: str
    """Version."""


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled form of what comes after the lookup, in float32."""

    kind: CompiledKind
    file: str
    """Relative to the model."""
    machine: Machine
    """aoti runs there alone; onnx anywhere."""
    max_logit_difference: float
    """From the float32 model, over the rows it was checked with."""
    max_batch_difference: float
    """Of a row's logit between batches of different sizes; 0 where it depends on the row alone."""


class OnnxModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model as one ONNX file, its tables inside: encoded rows in, logits out, in float32."""

    file: str
    """Relative to the model."""
    inputs: tuple[str, ...]
    """Those of an encoded request, see `fastdlrm.contracts.signature`; ids and lengths int64."""
    max_logit_difference: float
    """From this exported model, over the golden rows."""


class ExportedManifest(Artifact, frozen=True, kw_only=True):
    """An exported model: all that is needed to score raw rows.

    `config` has the sections model (its shape), source (layout of raw files) and export.
    """

    name: str
    """What requests call it."""
    schema: Schema
    encoding: Encoding
    missing: tuple[str, ...]
    """Texts that stand for a missing value in raw columns."""
    table_dtype: TableDtype
    mlp_dtype: MlpDtype
    matmul: Literal["default", "onednn"]
    """How float32 matrices are multiplied on a CPU, as the run did."""
    activation_ranges: tuple[tuple[float, float], ...]
    """Least and largest input of each layer that "int8" rounds; none otherwise."""
    calibration: Calibration
    quality: tuple[Quality, ...]
    """The float32 model first, then this one, then others that were compared; none where it was
    exported without a dataset."""
    machine: Machine
    """Where the golden scores were computed."""
    step: int
    """Optimizer steps behind the weights."""
    run_sha256: str
    """Of the run's manifest."""
    program: ProgramKind = "eager"
    """What the golden scores were computed with, and what serves unless another is asked for."""
    programs: tuple[Program, ...] = ()
    """The compiled ones there are."""
    onnx_model: OnnxModel | None = None
    """None where none was asked for."""
