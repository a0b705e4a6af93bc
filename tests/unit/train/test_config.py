"""Settings of training that contradict each other."""

import pytest

from fastdlrm.errors import ConfigError
from fastdlrm.train.config import ScheduleConfig
from tests.builders import tiny_recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "polynomial", "warmup_steps": 9, "decay_start_step": 8, "decay_steps": 5},
            r"^train\.schedule: warmup_steps 9 go beyond decay_start_step 8; the warm-up must end "
            r"before the decay starts: set decay_start_step to 9 or more, or warm up for fewer",
        ),
        (
            {"name": "polynomial", "warmup_steps": 1, "decay_steps": 5},
            r"warmup_steps 1 go beyond decay_start_step 0",
        ),
        (
            {"name": "step", "decay_start_step": 3, "decay_steps": 5},
            r"^train\.schedule: decay_start_step 3 with name 'step'; only polynomial takes one, ",
        ),
        (
            {"name": "constant", "decay_steps": 5},
            r"^train\.schedule: decay_steps 5 with name 'constant'; constant takes 0, step and",
        ),
        ({"name": "step"}, r"^train\.schedule: decay_steps 0 with name 'step'; constant takes 0"),
        (
            {"name": "constant", "warmup_steps": -1},
            r"^train\.schedule\.warmup_steps is -1; 0 or more is allowed$",
        ),
    ],
)
def test_a_schedule_that_contradicts_itself(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", "-1"),
        ("evaluate_every_steps", "-1"),
        ("early_stop_patience", "-2"),
        ("checkpoint_every_steps", "-1"),
    ],
)
def test_a_count_is_not_negative(name: str, value: str) -> None:
    message = rf"^preset tiny: train\.{name} is {value}; 0 or more is allowed$"
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(f"train.{name}={value}")
    tiny_recipe(f"train.{name}=0")


@pytest.mark.parametrize("value", ["-0.1", "nan", "inf"])
def test_a_target_is_a_value_of_the_metric(value: str) -> None:
    message = rf"train\.target_metric_value is {value}; a value of auc, 0 or more, is allowed"
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(f"train.target_metric_value={value}")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dense_optimizer.learning_rate", "0.0"),
        ("dense_optimizer.learning_rate", "-0.1"),
        ("sparse_optimizer.learning_rate", "nan"),
        ("sparse_optimizer.learning_rate", "inf"),
        ("schedule.gamma", "-0.5"),
    ],
)
def test_a_number_is_above_zero(setting: str, value: str) -> None:
    name = setting.replace(".", r"\.")
    message = rf"^preset tiny: train\.{name} is {value}; a finite number above 0 is allowed$"
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(f"train.{setting}={value}")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dense_optimizer.eps", "-1e-08"),
        ("dense_optimizer.weight_decay", "-0.1"),
        ("dense_optimizer.weight_decay", "nan"),
        ("sparse_optimizer.eps", "-1e-08"),
        ("sparse_optimizer.l2", "inf"),
        ("gradient_clip_norm", "-1.0"),
        ("gradient_clip_norm", "nan"),
    ],
)
def test_a_number_is_not_negative(setting: str, value: str) -> None:
    name = setting.replace(".", r"\.")
    message = rf"^preset tiny: train\.{name} is {value}; 0 or more, and finite, is allowed$"
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(f"train.{setting}={value}")
    tiny_recipe(f"train.{setting}=0.0")


def test_a_class_weight_is_not_negative() -> None:
    message = r"train\.class_weights\.positive is -2\.0; 0 or more, and finite, is allowed$"
    with pytest.raises(ConfigError, match=message):
        tiny_recipe("train.loss='weighted_bce'", "train.class_weights=[1.0, -2.0]")


@pytest.mark.parametrize("name", ["seed", "data.seed"])
def test_a_seed_has_64_bits(name: str) -> None:
    tiny_recipe(f"{name}=0")
    for seed in (-1, 2**64):
        message = rf"preset tiny: {name} is {seed}; 0 \.\. 2\*\*64 - 1 is allowed"
        with pytest.raises(ConfigError, match=message):
            tiny_recipe(f"{name}={seed}")


def test_the_decay_may_start_where_the_warmup_ends() -> None:
    ScheduleConfig(name="polynomial", warmup_steps=9, decay_start_step=9, decay_steps=5)
    ScheduleConfig(name="polynomial", decay_steps=5)
