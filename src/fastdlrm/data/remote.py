"""Where public data sets lie: the package's table `remote.toml`, and tables of a user's own."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.config import from_tree
from fastdlrm.errors import ConfigError, DataError


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file to fetch, or several whose names differ by a number."""

    name: str
    """Name on disk."""
    url: str = ""
    """http or https; empty where the file can only be had by hand."""
    size_bytes: int = 0
    """0: not known."""
    checksum: str = ""
    """"sha256:" or "md5:" and hexadecimal digits, as published; empty: none is."""
    numbered: int = 0
    """So many files: {n} in name and url counts from 0. 0: one file."""

    def __post_init__(self) -> None:
        where = f"file {self.name!r}"
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ConfigError(f"{where}: a plain file name without folder is allowed")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{where}: url {self.url!r}; http:// or https:// is allowed")
        kind, _, digits = self.checksum.partition(":")
        length = {"sha256": 64, "md5": 32, "": 0}.get(kind)
        if len(digits) != length or set(digits) - set("0123456789abcdef"):
            raise ConfigError(
                f"{where}: checksum {self.checksum!r}; 'sha256:' and 64 or 'md5:' and 32 lower "
                "hexadecimal digits are allowed"
            )
        if self.size_bytes < 0 or self.numbered < 0:
            raise ConfigError(f"{where}: size_bytes and numbered are 0 or more")
        if self.numbered and "{n}" not in self.name:
            raise ConfigError(f"{where}: numbered {self.numbered}, but no {{n}} in the name")


class RemoteSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A public data set."""

    about: str
    """One line: what it is."""
    terms: str
    """Licence, in short."""
    page: str
    """Where its owner describes it."""
    note: str = ""
    """What to know before fetching."""
    files: tuple[RemoteFile, ...]
    """In the order in which `prepare` takes them."""

    def single_files(self) -> tuple[RemoteFile, ...]:
        """The files, each numbered one spelt out."""
        return tuple(
            msgspec.structs.replace(
                file,
                name=file.name.replace("{n}", str(n)),
                url=file.url.replace("{n}", str(n)),
                numbered=0,
            )
            for file in self.files
            for n in range(file.numbered or 1)
        )


def remote_sets(table: Path | None = None) -> dict[str, RemoteSet]:
    """The package's sets, and those of a user's table, which replace sets of the same name.

    Raises:
        ConfigError: A table cannot be read, or says something that is not allowed.
    """
    package = resources.files("fastdlrm.data").joinpath("remote.toml")
    sets = _sets_of(package.read_bytes(), "the package's table")
    if table is not None:
        if not table.is_file():
            raise ConfigError(f"--url-table {table}: no such file; correct the path")
        sets |= _sets_of(table.read_bytes(), f"--url-table {table}")
    return sets


def select_files(
    sets: dict[str, RemoteSet], name: str, only: tuple[str, ...] = (), url: str = ""
) -> tuple[RemoteFile, ...]:
    """The files of a set that are asked for, with their addresses.

    Args:
        sets: All there are.
        name: Of the set.
        only: Names of files; empty for all.
        url: Takes the place of the table's: of the one file, or, ending in "/", of the folder that
            holds the files.

    Raises:
        ConfigError: There is no such set or file, or `url` does not fit.
        DataError: A file has no address.
    """
    if name not in sets:
        raise ConfigError(f"set {name!r}: not in the table; known are {', '.join(sorted(sets))}")
    files = sets[name].single_files()
    for wanted in only:
        if wanted not in {file.name for file in files}:
            known = ", ".join(file.name for file in files)
            raise ConfigError(f"--file {wanted!r}: not a file of {name!r}; it has {known}")
    files = tuple(file for file in files if not only or file.name in only)
    if url and not url.endswith("/") and len(files) > 1:
        raise ConfigError(
            f"--url {url!r}: one address for {len(files)} files; name one --file, or give the "
            "address of their folder, with a / at its end"
        )
    if url:
        where = {file.name: url + file.name if url.endswith("/") else url for file in files}
        files = tuple(msgspec.structs.replace(file, url=where[file.name]) for file in files)
    for file in files:
        if not file.url:
            raise DataError(
                f"{file.name}: no address to fetch it from; {sets[name].note} Get it at "
                f"{sets[name].page}, or pass --url"
            )
    return files


def _sets_of(content: bytes, where: str) -> dict[str, RemoteSet]:
    try:
        tree: dict[str, Any] = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{where}: not TOML: {problem}") from problem
    return {name: from_tree(tree[name], RemoteSet, f"{where}: {name}") for name in tree}
