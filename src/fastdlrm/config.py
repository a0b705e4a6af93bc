"""TOML preset or file + overrides -> one frozen typed config.

Invariants: an unknown key, a wrong type and a missing key are errors; a preset is a complete file.
"""

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fastdlrm.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=msgspec.Struct)


def preset_names() -> list[str]:
    """Names of the presets that come with the package, sorted."""
    folder = resources.files("fastdlrm").joinpath("presets")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith("toml"))


def load_config(name: str, kind: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a preset or a TOML file, apply overrides, check every key and value.

    Args:
        name: A preset's name, or the path of a TOML file (it ends in ".toml").
        kind: The config's type.
        overrides: "a.b=v" each; v is a TOML value, or a bare word taken as a string. In a list the
            key is the position: "data.sparse.0.columns=['C1']".

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    where, content = _read(name)
    tree = _parsed(content, where)
    for override in overrides:
        _apply(tree, override)
    return from_tree(tree, kind, where)


def load_over_defaults(
    name: str | None, kind: type[ConfigT], overrides: Sequence[str] = ()
) -> ConfigT:
    """A config whose keys all have defaults: what a file says goes over them, overrides go last.

    Args:
        name: As in `load_config`; None for no file.
        kind: The config's type.
        overrides: As in `load_config`.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    tree = to_tree(kind())
    where = "config"
    if name is not None:
        where, content = _read(name)
        _merge(tree, _parsed(content, where), where)
    for override in overrides:
        _apply(tree, override)
    return from_tree(tree, kind, where)


def from_tree(tree: Any, kind: type[ConfigT], where: str) -> ConfigT:
    """Turn plain dicts and lists into a typed config.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    try:
        return msgspec.convert(tree, type=kind)
    except msgspec.ValidationError as problem:
        # A struct's own check arrives here with its ConfigError as the cause.
        if isinstance(problem.__cause__, ConfigError):
            raise ConfigError(f"{where}: {problem.__cause__}") from problem
        raise ConfigError(f"{where}: {_readable(str(problem))}") from problem
    except ConfigError as problem:
        raise ConfigError(f"{where}: {problem}") from problem


def to_tree(config: msgspec.Struct) -> dict[str, Any]:
    """A config as plain dicts, lists, strings and numbers; `from_tree` turns it back."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{where}: not TOML: {problem}") from problem


def _merge(tree: dict[str, Any], found: dict[str, Any], where: str) -> None:
    """Put what a file says into the defaults, section by section."""
    for key, value in found.items():
        if key in tree and isinstance(tree[key], dict):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key} is {value!r}; it is a section: write [{key}]")
            _merge(tree[key], value, where)
        else:
            tree[key] = value


def _read(name: str) -> tuple[str, bytes]:
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"config {name!r}: no such file")
        return str(path), path.read_bytes()
    if name not in preset_names():
        raise ConfigError(
            f"config {name!r}: neither a preset ({', '.join(preset_names())}) "
            "nor the path of a .toml file"
        )
    preset = resources.files("fastdlrm").joinpath("presets", f"{name}.toml")
    return f"preset {name}", preset.read_bytes()


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r}: expected a.b=v")
    *parents, last = path.strip().split(".")
    node: Any = tree
    for key in parents:
        node = _child(node, key, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = _value(text)
    elif isinstance(node, dict):
        node[last] = _value(text)
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a value, not a section")


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, override)]
    if isinstance(node, dict) and key in node:
        return node[key]
    known = f"; known here: {', '.join(node)}" if isinstance(node, dict) else ""
    raise ConfigError(f"override {override!r}: no section {key!r}{known}")


def _position(node: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"override {override!r}: {key!r} is not a position in 0..{len(node) - 1}")
    return int(key)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _readable(message: str) -> str:
    return message.replace("Object contains unknown field", "unknown key").replace(
        "Object missing required field", "missing key"
    )
