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
