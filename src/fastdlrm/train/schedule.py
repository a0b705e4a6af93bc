"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from fastdlrm.train.config import ScheduleConfig

LEARNING_RATE_FLOOR = 1e-7
"""The polynomial decay stops here, as the reference's."""


def factor(config: ScheduleConfig, step: int) -> float:
    """Factor on the learning rates.

    With n = step + 1, the number of the step counted from 1, it is warm-up times decay:
    warm-up is n / warmup_steps up to 1. Decay is 1 for "constant"; gamma^(step // decay_steps) for
    "step"; for "polynomial" 1 up to decay_start_step, then ((decay_steps - k) / decay_steps)^2
    with k = n - decay_start_step, kept at its value of k = decay_steps - 1 from there on.

    Args:
        config: Shape of the schedule.
        step: Optimizer steps done before this one.

    Source: the learning-rate policy of the DLRM reference implementation, except that between
    warm-up and decay the factor is 1 (the reference keeps the last warm-up value).
    """
    return _warmup(config, step) * _decay(config, step)


def learning_rate(config: ScheduleConfig, base: float, step: int) -> float:
    """The factor times a learning rate; decay "polynomial" does not go below the floor.

    Args:
        config: Shape of the schedule.
        base: The optimizer's learning rate.
        step: Optimizer steps done before this one.
    """
    decayed = base * _decay(config, step)
    if config.name == "polynomial":
        decayed = max(decayed, min(base, LEARNING_RATE_FLOOR))
    return decayed * _warmup(config, step)


def _warmup(config: ScheduleConfig, step: int) -> float:
    return min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0


def _decay(config: ScheduleConfig, step: int) -> float:
    if config.name == "constant":
        return 1.0
    if config.name == "step":
        return float(config.gamma ** (step // config.decay_steps))
    done = min(max(step + 1 - config.decay_start_step, 0), config.decay_steps - 1)
    return ((config.decay_steps - done) / config.decay_steps) ** 2
