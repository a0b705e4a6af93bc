from pathlib import Path

import pytest

from fastdlrm.data.remote import RemoteFile, RemoteSet, remote_sets, select_files
from fastdlrm.errors import ConfigError, DataError

TABLE = """
[own]
about = "two days and a list"
terms = "mine"
page = "https://example.org"
note = "Ask me."

[[own.files]]
name = "day_{n}.gz"
url = "https://example.org/{n}/day_{n}.gz"
size_bytes = 5
numbered = 2

[[own.files]]
name = "list"
"""


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, RemoteSet]:
    (tmp_path / "own.toml").write_text(TABLE)
    return remote_sets(tmp_path / "own.toml")


def test_the_package_s_table() -> None:
    found = remote_sets()
    assert {"criteo-kaggle", "criteo-terabyte", "avazu", "movielens-25m", "adult"} <= set(found)
    days = found["criteo-terabyte"].single_files()
    assert [file.name for file in days] == [f"day_{n}.gz" for n in range(24)]
    assert days[23].url.endswith("/day_23.gz")
    for described in found.values():
        assert described.terms and described.page.startswith("https://")
        for file in described.single_files():
            assert file.url.startswith("https://") or "login" in described.note
            assert file.checksum or not file.url or "No checksum is published" in described.note


def test_a_table_of_one_s_own(sets: dict[str, RemoteSet]) -> None:
    assert "adult" in sets
    files = select_files(sets, "own", ("day_1.gz",))
    assert files == (
        RemoteFile(name="day_1.gz", url="https://example.org/1/day_1.gz", size_bytes=5),
    )
    assert [f.name for f in sets["own"].single_files()] == ["day_0.gz", "day_1.gz", "list"]


def test_a_table_replaces_sets_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(TABLE.replace("own", "adult"))
    assert remote_sets(tmp_path / "t.toml")["adult"].about == "two days and a list"


def test_addresses_of_one_s_own(sets: dict[str, RemoteSet]) -> None:
    files = select_files(sets, "own", url="http://mirror.example/x/")
    assert [f.url for f in files] == [
        f"http://mirror.example/x/{name}" for name in ("day_0.gz", "day_1.gz", "list")
    ]
    (file,) = select_files(sets, "own", ("list",), url="http://mirror.example/other")
    assert file.url == "http://mirror.example/other"


@pytest.mark.parametrize(
    ("name", "only", "url", "error", "message"),
    [
        ("ones", (), "", ConfigError, "set 'ones': not in the table; known are adult, avazu, "),
        ("own", ("day_2.gz",), "", ConfigError, r"--file 'day_2\.gz': .* it has day_0\.gz, day_1"),
        ("own", (), "http://a/b", ConfigError, "'http://a/b': one address for 3 files; name one"),
        ("own", ("list",), "ftp://a/b", ConfigError, "url 'ftp://a/b'; http:// or https:// is all"),
        ("own", (), "", DataError, "list: no address to fetch it from; Ask me. Get it at https://"),
    ],
)
def test_what_cannot_be_selected(
    sets: dict[str, RemoteSet],
    name: str,
    only: tuple[str, ...],
    url: str,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        select_files(sets, name, only, url)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, "file 'a/b': a plain file name without folder is allowed"),
        ({"name": ".hidden"}, "file '.hidden': a plain file name"),
        ({"name": ""}, "file '': a plain file name"),
        ({"url": "file:///etc/passwd"}, "url 'file:///etc/passwd'; http:// or https:// is allowed"),
        ({"checksum": "sha1:" + "0" * 40}, "checksum 'sha1:0+'; 'sha256:' and 64 or 'md5:' and 32"),
        ({"checksum": "md5:" + "0" * 31}, "checksum 'md5:0+'; "),
        ({"checksum": "md5:" + "F" * 32}, "checksum 'md5:F+'; "),
        ({"checksum": "0" * 64}, "checksum '0+'; "),
        ({"size_bytes": -1}, "size_bytes and numbered are 0 or more"),
        ({"numbered": 3}, r"numbered 3, but no \{n\} in the name"),
    ],
)
def test_a_file_that_contradicts_itself(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteFile(**{"name": "f", **settings})  # type: ignore[arg-type]


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    table = tmp_path / "t.toml"
    with pytest.raises(ConfigError, match=r"--url-table .*t\.toml: no such file"):
        remote_sets(table)
    table.write_text("[own")
    with pytest.raises(ConfigError, match=r"--url-table .*t\.toml: not TOML: "):
        remote_sets(table)
    table.write_text(TABLE.replace("terms", "licence"))
    with pytest.raises(ConfigError, match=r"t\.toml: own: unknown key `licence`"):
        remote_sets(table)
    table.write_text("own = 3")
    with pytest.raises(ConfigError, match=r"t\.toml: own: Expected `object`, got `int`"):
        remote_sets(table)
