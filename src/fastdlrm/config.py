"""TOML preset or file + overrides -> one frozen typed config.

Invariants: an unknown key, a wrong type and a missing key are errors; a preset is a complete file.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fastdlrm.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=msgspec.Struct)

_TOML_WIDTH = 100


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


def to_toml(config: msgspec.Struct) -> str:
    """A config as a complete TOML file, defaults included; read back, it is the same config."""
    return "\n".join(_toml_lines(to_tree(config))).lstrip("\n") + "\n"


def toml_value(value: Any) -> str:
    """A string, number, boolean or list as TOML writes it; a long list takes several lines."""
    if not isinstance(value, tuple | list):
        # JSON's strings, numbers and booleans are TOML's, but for the character DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    items = [toml_value(item) for item in value]
    if sum(len(item) + 2 for item in items) < _TOML_WIDTH - len("weight_column = []"):
        return f"[{', '.join(items)}]"
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) + 4 > _TOML_WIDTH:
            lines.append("")
        lines[-1] += f" {item},"
    return "\n".join(["[", *(f" {line}" for line in lines), "]"])


def parse_value(text: str) -> Any:
    """A TOML value; a bare word is taken as a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain dicts and lists.

    Raises:
        ConfigError: There is no such file, or it is not TOML.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    return _parsed(path.read_bytes(), str(path))


def set_value(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set one key of a tree; a section on its way must be there.

    Args:
        tree: Changed in place.
        key: "a.b"; in a list the position: "a.0".
        value: Of plain types.
        where: Begins the message of an error.

    Raises:
        ConfigError: There is no such section, or no such position.
    """
    *parents, last = key.strip().split(".")
    node: Any = tree
    for parent in parents:
        node = _child(node, parent, where)
    if isinstance(node, list):
        node[_position(node, last, where)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"{where}: {'.'.join(parents)} is a value, not a section")


def get_value(tree: dict[str, Any], key: str, where: str) -> Any:
    """The value of a key, as `set_value` names it.

    Raises:
        ConfigError: There is no such key.
    """
    node: Any = tree
    for part in key.split("."):
        node = _child(node, part, where)
    return node


def _toml_lines(section: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """A section's values, then its sections and its lists of sections; what is None is left out."""
    inner = {key: value for key, value in section.items() if isinstance(value, dict)}
    lists = {
        key: value
        for key, value in section.items()
        if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value)
    }
    for key, value in section.items():
        if value is not None and key not in inner and key not in lists:
            yield f"{_toml_key(key)} = {toml_value(value)}"
    for key, value in inner.items():
        full = f"{name}{_toml_key(key)}"
        yield from ("", f"[{full}]", *_toml_lines(value, f"{full}."))
    for key, items in lists.items():
        full = f"{name}{_toml_key(key)}"
        for item in items:
            yield from ("", f"[[{full}]]", *_toml_lines(item, f"{full}."))


def _toml_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if is_bare else toml_value(key)


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
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r}: expected a.b=v")
    set_value(tree, key, parse_value(text), f"override {override!r}")


def _child(node: Any, key: str, where: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, where)]
    if isinstance(node, dict) and key in node:
        return node[key]
    known = f"; known here: {', '.join(node)}" if isinstance(node, dict) else ""
    raise ConfigError(f"{where}: no section {key!r}{known}")


def _position(node: list[Any], key: str, where: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"{where}: {key!r} is not a position in 0..{len(node) - 1}")
    return int(key)


def _readable(message: str) -> str:
    return message.replace("Object contains unknown field", "unknown key").replace(
        "Object missing required field", "missing key"
    )
