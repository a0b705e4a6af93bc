"""Every option of a model and of its training, small, a few that do not touch each other a case."""

import json

from tests.interactions import settings

DIM = 8
"""Of the config that the cases override, `tests/e2e/bags.toml`."""


def _interaction(name: str) -> dict[str, object]:
    return {f"model.{key}": value for key, value in settings(name, DIM).items()}


CASES: dict[str, dict[str, object]] = {
    "dot": {},
    "dot_self-mean-sgd": {
        **_interaction("dot_self"),
        "model.pooling": "mean",
        "train.dense_optimizer.name": "sgd",
        "train.sparse_optimizer.name": "sgd",
    },
    "cat-layer_norm-normal_init": {
        **_interaction("cat"),
        "model.norm": "layer",
        "model.init": "normal",
    },
    "cross-adagrad-weighted_bce": {
        **_interaction("cross"),
        "train.dense_optimizer.name": "adagrad",
        "train.sparse_optimizer.name": "adagrad",
        "train.loss": "weighted_bce",
        "train.class_weights": (1.0, 3.0),
    },
    "projection-adam-clipped": {
        **_interaction("projection"),
        "train.sparse_optimizer.name": "adam",
        "train.sparse_optimizer.l2": 0.001,
        "train.gradient_clip_norm": 0.5,
        "train.gradient_accumulation_steps": 2,
    },
    "fm-linear_dense": {
        **_interaction("fm"),
        "model.bottom_mlp": (DIM,),
        "model.bottom_relu": False,
        "model.top_mlp": (),
    },
    "dcn-deep": _interaction("dcn"),
    "mse-adamw-polynomial": {
        "train.loss": "mse",
        "train.dense_optimizer.name": "adamw",
        "train.dense_optimizer.weight_decay": 0.01,
        "train.schedule.name": "polynomial",
        "train.schedule.decay_steps": 30,
    },
    "hashed-added-halves": {
        "model.compression": {
            "tables": {
                "item": {"kind": "hash", "num_rows": 60},
                "words": {"kind": "quotient_remainder", "operation": "concat"},
                "user": {"kind": "quotient_remainder", "operation": "add", "num_collisions": 8},
            }
        },
    },
    "multiplied-mean": {
        "model.compression": {"threshold_rows": 30, "default": {"kind": "quotient_remainder"}},
        "model.pooling": "mean",
    },
    "narrow-projected-mean": {
        "model.table_dims": {"item": 5, "words": 2, "user": 1},
        "model.table_projection": True,
        "model.pooling": "mean",
        "model.weighted_pooling": "learned",
        "train.sparse_optimizer.name": "rowwise_adagrad",
    },
    "learned_weights-one_mean-multiplied-adam-clipped": {
        "model.weighted_pooling": "learned",
        "model.table_pooling": {"item": "mean"},
        "model.compression": {
            "tables": {
                "item": {"kind": "quotient_remainder"},
                "user": {"kind": "hash", "num_rows": 20},
            }
        },
        "train.sparse_optimizer.name": "adam",
        "train.gradient_clip_norm": 0.5,
    },
}
"""Overrides of a config's keys by case."""


def overrides(case: str) -> list[str]:
    """As the command line takes them."""
    return [f"{key}={_toml(value)}" for key, value in CASES[case].items()]


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
