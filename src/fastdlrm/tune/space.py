"""The configs of a study: what is written in flags or a file, and the config that values give.

    [range]
    train.dense_optimizer.learning_rate = "log:1e-4..1e-1"
    model.top_mlp.0 = "32..256:32"
    [choice]
    model.embedding_dim = [8, 16, 32]
    [variant.interaction]
    dot = { "model.interaction" = "dot" }
    cross = { "model.interaction" = "cross", "model.num_cross_layers" = 2, "model.cross_rank" = 8 }
    [same]
    train.sparse_optimizer.learning_rate = "train.dense_optimizer.learning_rate"

Invariant: what must be a function of embedding_dim follows it: the last width of bottom_mlp, and
those of the projections, whose last widths stay the same multiples of it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.config import from_tree, get_value, parse_value, read_toml, set_value
from fastdlrm.contracts.study import Choice, Range, Space, Variant
from fastdlrm.errors import ConfigError
from fastdlrm.train.recipe import Recipe

SECTIONS = ("model", "train")
"""Of the config, that a study may change."""

FIXED = (
    "train.best_metric",
    "train.device",
    "train.evaluate_every_steps",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
)
"""Keys that a study may not change: they say how trials are measured and kept."""

_FORMS = "LOW..HIGH, LOW..HIGH:STEP and log:LOW..HIGH are allowed"
_NUMBER = r"[-+0-9.eE_]+?"
_RANGE = re.compile(rf"(log:)?({_NUMBER})\.\.({_NUMBER})(?::({_NUMBER}))?")


def read_space(
    file: Path | None, ranges: Sequence[str], choices: Sequence[str], base: Recipe
) -> Space:
    """The space of a file and of flags together, around a config.

    Every end and every value is tried by itself, the rest of the config as it is.

    Args:
        file: As the module's docstring shows; None for none.
        ranges: "KEY=LOW..HIGH" each.
        choices: "KEY=V1,V2,..." each: TOML values or bare words.
        base: The config; a range of a key that holds a whole number has whole numbers.

    Raises:
        ConfigError: A part cannot be read, two speak of one key, or there is none; a key is unknown
            or may not be changed, or a value is not allowed.
    """
    parameters: dict[str, Range | Choice | Variant] = {}
    same: dict[str, str] = {}
    if file is not None:
        parameters, same = _of_file(file)
    flags: list[tuple[str, Range | Choice]] = []
    flags += [(key, _range(text, f"--range {key}")) for key, text in _split("--range", ranges)]
    flags += [(key, _choice(text, f"--choice {key}")) for key, text in _split("--choice", choices)]
    for key, parameter in flags:
        if key in parameters:
            raise ConfigError(f"{key}: given twice; leave one out")
        parameters[key] = parameter
    if not parameters:
        raise ConfigError(
            "nothing to search; give --range KEY=LOW..HIGH, --choice KEY=V1,V2 or --space FILE"
        )
    tree = _tree(base)
    for key, found in parameters.items():
        if isinstance(found, Range):
            parameters[key] = _typed(key, found, get_value(tree, key, f"range {key}"))
    space = Space(parameters=parameters, same=same)
    _require_apart(space)
    _require_valid(base, space)
    return space


def recipe_of(base: Recipe, space: Space, params: Mapping[str, Any]) -> Recipe:
    """The config that some parameters give; those absent leave it as it is.

    Raises:
        ConfigError: The values do not go together.
    """
    tree = _tree(base)
    for name, value in params.items():
        parameter = space.parameters[name]
        values = parameter.options[value] if isinstance(parameter, Variant) else {name: value}
        for key, one in values.items():
            _set(tree, key, one)
    for key, source in space.same.items():
        _set(tree, key, get_value(tree, source, f"same {key}"))
    if base.model.mixed_dims is not None:
        tree["model"]["table_dims"] = {}  # of the config as it was; each trial has its own
    _follow(tree["model"], base.model.embedding_dim)
    told = ", ".join(f"{name} {value}" for name, value in params.items())
    return from_tree(tree, Recipe, told or "config")


def keys_of(space: Space) -> set[str]:
    """All keys of the config that a space changes."""
    keys = set(space.same)
    for name, parameter in space.parameters.items():
        if isinstance(parameter, Variant):
            keys |= {key for values in parameter.options.values() for key in values}
        else:
            keys.add(name)
    return keys


def _tree(base: Recipe) -> dict[str, Any]:
    """A config as plain data whose lists can be changed."""
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(base))
    return tree


def _require_valid(base: Recipe, space: Space) -> None:
    for name, parameter in space.parameters.items():
        for value in _ends(parameter):
            try:
                recipe_of(base, space, {name: value})
            except ConfigError as problem:
                raise ConfigError(
                    f"{problem}; a study tries {name} {value}: change it, or let the keys that "
                    "must change together be a [variant] of --space"
                ) from problem


def _typed(key: str, found: Range, value: Any) -> Range:
    """A range of whole numbers where the config has one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"range {key}: the config has {value!r}; a choice is allowed")
    numbers = [found.low, found.high, found.step or 1]
    is_integer = isinstance(value, int)
    if is_integer and not all(isinstance(number, int) for number in numbers):
        raise ConfigError(f"range {key}: {numbers}; it takes whole numbers")
    return msgspec.structs.replace(found, is_integer=is_integer)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    if key.partition(".")[0] not in SECTIONS or key in FIXED:
        raise ConfigError(
            f"{key}: not for a study to change; keys of [model] and [train] are allowed, but for "
            f"{', '.join(FIXED)}"
        )
    get_value(tree, key, key)
    set_value(tree, key, value, key)


def _follow(model: dict[str, Any], old_dim: int) -> None:
    """Give widths that hang on embedding_dim what the new one asks for."""
    dim = model["embedding_dim"]
    if not isinstance(dim, int) or dim == old_dim:
        return
    for name in ("bottom_mlp", "projection_branch1", "projection_branch2"):
        widths = model[name]
        if widths and isinstance(widths[-1], int) and widths[-1] % old_dim == 0:
            model[name] = [*widths[:-1], widths[-1] // old_dim * dim]


def _ends(parameter: Range | Choice | Variant) -> Iterable[Any]:
    match parameter:
        case Range():
            kind = int if parameter.is_integer else float
            return (kind(parameter.low), kind(parameter.high))
        case Choice():
            return parameter.values
        case Variant():
            return parameter.options


def _require_apart(space: Space) -> None:
    """No key may be set by two."""
    seen: dict[str, str] = {}
    for name, parameter in space.parameters.items():
        options = parameter.options.values() if isinstance(parameter, Variant) else [{name: 0}]
        for key in dict.fromkeys(key for values in options for key in values):
            if key in seen or key in space.same:
                other = seen.get(key, f"same {key}")
                raise ConfigError(f"{key}: set by {name} and by {other}; leave one out")
            seen[key] = name


def _of_file(file: Path) -> tuple[dict[str, Range | Choice | Variant], dict[str, str]]:
    tree = read_toml(file)
    allowed = ("range", "choice", "variant", "same")
    for name, section in tree.items():
        if name not in allowed or not isinstance(section, dict):
            raise ConfigError(f"{file}: {name!r}; the sections {', '.join(allowed)} are allowed")
    parameters: dict[str, Range | Choice | Variant] = {}
    for key, text in _flat(tree.get("range", {})):
        if not isinstance(text, str):
            raise ConfigError(f"{file}: range {key} is {text!r}; a text: {_FORMS}")
        parameters[key] = _range(text, f"{file}: range {key}")
    for key, values in _flat(tree.get("choice", {})):
        if not isinstance(values, list):
            raise ConfigError(f"{file}: choice {key} is {values!r}; a list is allowed")
        parameters[key] = _choice_of(values, f"{file}: choice {key}")
    for name, options in tree.get("variant", {}).items():
        parameters[name] = _variant(options, f"{file}: variant {name}")
    same = dict(_flat(tree.get("same", {})))
    for key, source in same.items():
        if not isinstance(source, str):
            raise ConfigError(f"{file}: same {key} is {source!r}; name another key")
    return parameters, same


def _flat(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and their values; TOML writes a.b = 1 as a section in a section."""
    found: list[tuple[str, Any]] = []
    for key, value in section.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found


def _split(flag: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        key, equals, rest = text.partition("=")
        if not equals:
            raise ConfigError(f"{flag} {text!r}: expected KEY=...")
        found.append((key.strip(), rest.strip()))
    return found


def _range(text: str, where: str) -> Range:
    match = _RANGE.fullmatch(text.replace(" ", ""))
    numbers = [parse_value(part) for part in match.groups()[1:] if part] if match else []
    if match is None or not all(isinstance(n, int | float) for n in numbers):
        raise ConfigError(f"{where}: {text!r} is no range; {_FORMS}")
    low, high, *steps = numbers
    found = Range(
        low=low,
        high=high,
        is_log=match[1] is not None,
        step=steps[0] if steps else None,
    )
    if not low < high or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{where}: {text!r}; the low end must be below the high one")
    if found.is_log and (low <= 0 or steps):
        raise ConfigError(f"{where}: {text!r}; log: takes a low end above 0, and no step")
    if steps and not (steps[0] > 0 and _is_whole((high - low) / steps[0])):
        raise ConfigError(f"{where}: {text!r}; steps of one size must lead from end to end")
    return found


def _is_whole(number: float) -> bool:
    return number > 0.5 and abs(number - round(number)) < 1e-9 * number


def _choice(text: str, where: str) -> Choice:
    values = parse_value(f"[{text}]")
    if not isinstance(values, list):  # bare words among them
        values = [parse_value(part.strip()) for part in text.split(",")]
    return _choice_of(values, where)


def _choice_of(values: list[Any], where: str) -> Choice:
    told = [msgspec.json.encode(value) for value in values]
    if len(set(told)) < 2 or len(set(told)) < len(told):
        raise ConfigError(f"{where}: {values}; two values or more are allowed, each another")
    return Choice(values=tuple(values))


def _variant(options: Any, where: str) -> Variant:
    if (
        not isinstance(options, dict)
        or len(options) < 2
        or not all(isinstance(values, dict) for values in options.values())
    ):
        raise ConfigError(
            f"{where}: {options!r}; two options or more are allowed, each a name and its keys: "
            'NAME = { "model.interaction" = "dot" }'
        )
    return Variant(options={name: dict(_flat(values)) for name, values in options.items()})
