"""How a model is trained: the [train] section of a preset."""

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError

Loss = Literal["bce", "weighted_bce", "mse"]
Metric = Literal["auc", "log_loss", "ne", "pr_auc", "accuracy"]


class DenseOptimizerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Optimizer of the MLPs and of the interaction's parameters."""

    name: Literal["sgd", "adagrad", "adam", "adamw"]
    """adamw decouples the weight decay; the others add it to the gradient."""
    learning_rate: float
    """Before the schedule's factor."""
    eps: float = 1e-8
    """Added to the denominator (not sgd)."""
    weight_decay: float = 0.0
    """On weights and biases alike."""

    def __post_init__(self) -> None:
        where = "train.dense_optimizer"
        _require_positive(where, {"learning_rate": self.learning_rate})
        _require_not_negative(where, {"eps": self.eps, "weight_decay": self.weight_decay})


class SparseOptimizerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Optimizer of the embedding tables; it touches only the rows of a batch."""

    name: Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
    """rowwise_adagrad keeps one number a row; adam is lazy: rows not in a batch do not move."""
    learning_rate: float
    """Before the schedule's factor."""
    eps: float = 1e-8
    """Added to the denominator (not sgd)."""
    l2: float = 0.0
    """Adds l2 * row to the gradient of each row of the batch."""

    def __post_init__(self) -> None:
        where = "train.sparse_optimizer"
        _require_positive(where, {"learning_rate": self.learning_rate})
        _require_not_negative(where, {"eps": self.eps, "l2": self.l2})


class ScheduleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Factor on both learning rates as a function of the step."""

    name: Literal["constant", "step", "polynomial"]
    """polynomial: quadratic decay to near 0 over decay_steps from decay_start_step, as the
    reference; step: times `gamma` every decay_steps."""
    warmup_steps: int = 0
    """Steps of linear growth from near 0."""
    decay_start_step: int = 0
    """First step of the decay (polynomial); not before the warm-up ends."""
    decay_steps: int = 0
    """Length of the decay (polynomial) or of one stair (step)."""
    gamma: float = 0.1
    """Factor of one stair (step)."""

    def __post_init__(self) -> None:
        names = ("warmup_steps", "decay_start_step", "decay_steps")
        _require_not_negative("train.schedule", {name: getattr(self, name) for name in names})
        _require_positive("train.schedule", {"gamma": self.gamma})
        if (self.name == "constant") == (self.decay_steps > 0):
            raise ConfigError(
                f"train.schedule: decay_steps {self.decay_steps} with name {self.name!r}; constant "
                "takes 0, step and polynomial 1 or more"
            )
        if self.name != "polynomial" and self.decay_start_step:
            raise ConfigError(
                f"train.schedule: decay_start_step {self.decay_start_step} with name "
                f"{self.name!r}; only polynomial takes one, leave it out"
            )
        if self.name == "polynomial" and self.warmup_steps > self.decay_start_step:
            raise ConfigError(
                f"train.schedule: warmup_steps {self.warmup_steps} go beyond decay_start_step "
                f"{self.decay_start_step}; the warm-up must end before the decay starts: set "
                f"decay_start_step to {self.warmup_steps} or more, or warm up for fewer steps"
            )


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The loop: batches, losses, optimizers, evaluation and checkpoints."""

    global_batch_size: int
    """Rows an optimizer step, over all ranks."""
    num_epochs: int
    """Passes over train."""
    dense_optimizer: DenseOptimizerConfig
    sparse_optimizer: SparseOptimizerConfig
    schedule: ScheduleConfig
    max_steps: int = 0
    """Stop after this many optimizer steps; 0: num_epochs alone decides."""
    loss: Loss = "bce"
    """bce on logits; weighted_bce weighs the classes; mse on probabilities."""
    class_weights: tuple[float, float] = (1.0, 1.0)
    """Weight of a negative and of a positive row (weighted_bce)."""
    gradient_accumulation_steps: int = 1
    """Micro-batches an optimizer step; more: less memory, the same result, except that batch norm
    takes its statistics from a micro-batch, not from the whole batch."""
    gradient_clip_norm: float = 0.0
    """Largest norm of all gradients together, tables' included; 0: no limit."""
    evaluate_every_steps: int = 0
    """Steps between evaluations on validation; 0: at the end of each epoch."""
    eval_batch_size: int = 8192
    """Rows an evaluation batch."""
    best_metric: Metric = "auc"
    """Validation metric that picks the best checkpoint and stops early."""
    early_stop_patience: int = 0
    """Evaluations without a new best before training stops; 0: never."""
    target_metric_value: float | None = None
    """Training ends with the first evaluation whose best_metric is as good; unset: never."""
    checkpoint_every_steps: int = 0
    """Steps between checkpoints; 0: only at evaluations and at the end."""
    keep_checkpoints: int = 2
    """Last checkpoints kept, the best one apart."""
    log_every_steps: int = 100
    """Steps between training records."""
    shuffle_block_rows: int = 1
    """Rows that stay together when an epoch's order is drawn. More: faster reads from disk."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the MLPs' and the interaction's products. tf32 (on a GPU) and bf16: faster, coarser; the
    parameters and their optimizer stay in fp32."""
    table_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the tables' rows; 16 bits halve their memory, bf16 is rounded stochastically."""
    table_placement: Literal["device", "host"] = "device"
    """Of the tables and their optimizer's state when a GPU computes. host: in page-locked memory
    that the GPU's kernels read and write over the bus, for tables that exceed the card; slower."""
    exchange_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of pooled vectors and their gradients on their way between ranks; auto: bf16 where precision
    is, else fp32."""
    use_cuda_graph: bool = True
    """On a GPU, replay whole steps as one captured graph where that is possible: much faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: cuda where there is one. A trained model is used on the CPU where its
    GPU is absent."""

    def __post_init__(self) -> None:
        at_least_one = {
            "global_batch_size": self.global_batch_size,
            "num_epochs": self.num_epochs,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "eval_batch_size": self.eval_batch_size,
            "keep_checkpoints": self.keep_checkpoints,
            "log_every_steps": self.log_every_steps,
            "shuffle_block_rows": self.shuffle_block_rows,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ConfigError(f"train.{name} is {value}; 1 or more is allowed")
        not_negative: dict[str, float] = {
            "max_steps": self.max_steps,
            "gradient_clip_norm": self.gradient_clip_norm,
            "evaluate_every_steps": self.evaluate_every_steps,
            "early_stop_patience": self.early_stop_patience,
            "checkpoint_every_steps": self.checkpoint_every_steps,
        }
        _require_not_negative("train", not_negative)
        if self.global_batch_size % self.gradient_accumulation_steps:
            raise ConfigError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )
        target = self.target_metric_value
        if target is not None and not 0 <= target < math.inf:
            raise ConfigError(
                f"train.target_metric_value is {target}; a value of {self.best_metric}, 0 or more, "
                "is allowed"
            )
        if self.loss != "weighted_bce" and self.class_weights != (1.0, 1.0):
            raise ConfigError(f"train.class_weights need loss = 'weighted_bce', not {self.loss!r}")
        for kind, weight in zip(("negative", "positive"), self.class_weights, strict=True):
            _require_not_negative("train.class_weights", {kind: weight})


def _require_positive(where: str, values: Mapping[str, float]) -> None:
    """Refuse NaN, too: it compares as false."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{where}.{name} is {value}; a finite number above 0 is allowed")


def _require_not_negative(where: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            finite = "" if isinstance(value, int) else ", and finite,"
            raise ConfigError(f"{where}.{name} is {value}; 0 or more{finite} is allowed")
