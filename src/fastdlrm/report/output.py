"""A page's files: HTML, Markdown, JSON."""

from pathlib import Path

import msgspec

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import ConfigError
from fastdlrm.report.page import Page, check_output
from fastdlrm.report.page_text import markdown, tree

SUFFIXES = (".html", ".md", ".json")


def output_files(out: Path) -> list[Path]:
    """The files to write: `out`, or in a folder of that name one of each kind.

    Raises:
        ConfigError: A file of another kind.
    """
    if out.is_dir() or (not out.suffix and not out.exists()):
        return [out / f"report{suffix}" for suffix in SUFFIXES]
    if out.suffix not in SUFFIXES:
        raise ConfigError(
            f"--out {out}: a file of {', '.join(SUFFIXES)}, or a folder, whose name has no dot "
            "until it exists, is allowed"
        )
    return [out]


def check(file: Path) -> None:
    """Refuse, before the work, what would fail after it.

    Raises:
        ConfigError: The path is a folder; or charts are wanted, and Plotly is not installed.
    """
    if file.suffix == ".html":
        check_output(file)
    elif file.is_dir():
        raise ConfigError(f"{file}: a folder; remove it, or name another --out")


def write(page: Page, file: Path) -> None:
    """Write a page as its file's suffix says, atomically."""
    if file.suffix == ".html":
        page.write(file)
        return
    is_text = file.suffix == ".md"
    content = markdown(page).encode() if is_text else msgspec.json.encode(tree(page)) + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content)
