"""Against an HTTP server on this machine."""

import hashlib
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdlrm.data import download as module
from fastdlrm.data.checksums import RECORD
from fastdlrm.data.download import Fetched, Patience, download
from fastdlrm.data.remote import RemoteFile
from fastdlrm.errors import DataError
from tests.unit.data.file_server import FileServer, serving

CONTENT = random.Random(0).randbytes(300_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
HASTY = Patience(num_attempts=3, first_wait_s=0.01, timeout_s=5.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer(CONTENT)) as served:
        yield served


def fetch(server: FileServer, folder: Path, **known: object) -> Fetched:
    file = RemoteFile(name="file", url=server.url, **known)  # type: ignore[arg-type]
    return download(file, folder, patience=HASTY)


def leave_part(server: FileServer, folder: Path, num_bytes: int, **known: object) -> None:
    """What a command leaves that gave up after so many bytes."""
    server.cuts, server.num_answered = [num_bytes], 1
    with pytest.raises(DataError, match=r"given up after 3 attempts, [0-9,]+ bytes are kept"):
        fetch(server, folder, **known)
    assert (folder / ".file.part").stat().st_size == num_bytes
    assert not (folder / "file").exists()
    server.num_answered, server.ranges = None, []


def test_a_whole_file(server: FileServer, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    file = RemoteFile(name="file", url=server.url, size_bytes=300_000, checksum=f"sha256:{SHA256}")
    found = download(file, tmp_path / "new", progress=lambda *now: seen.append(now))
    assert found == Fetched(
        name="file", size_bytes=300_000, sha256=SHA256, checked="published sha256"
    )
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert seen[-1] == ("file", 300_000, 300_000)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [RECORD, "file"]
    assert (tmp_path / "new" / RECORD).read_text() == f"{SHA256}  file\n"
    command = ["sha256sum", "--check", "--strict", RECORD]
    assert subprocess.run(command, cwd=tmp_path / "new", check=False).returncode == 0


def test_md5(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, checksum=f"md5:{MD5}").checked == "published md5"


def test_a_broken_connection_is_taken_up(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    assert fetch(server, tmp_path, checksum=f"sha256:{SHA256}").size_bytes == 300_000
    assert server.ranges == ["", "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_later_command_goes_on(server: FileServer, tmp_path: Path) -> None:
    leave_part(server, tmp_path, 120_000)
    found = fetch(server, tmp_path)
    assert found.resumed_at_byte == 120_000
    assert server.ranges == ["bytes=120000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert found.sha256 == SHA256


def test_a_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.has_ranges = False
    server.cuts = [100_000, 200_000]
    fetch(server, tmp_path, checksum=f"sha256:{SHA256}")
    assert server.ranges == ["", "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_of_another_file_is_not_gone_on_with(server: FileServer, tmp_path: Path) -> None:
    leave_part(server, tmp_path, 120_000)
    server.content, server.etag = bytes(200_000), '"2"'
    assert fetch(server, tmp_path).size_bytes == 200_000
    assert server.ranges == ["bytes=120000-"]  # asked under the old ETag, answered by the whole
    assert (tmp_path / "file").read_bytes() == bytes(200_000)


@pytest.mark.parametrize("damage", ["", "{}", "not JSON"])
def test_a_part_of_unknown_origin_is_not_gone_on_with(
    server: FileServer, tmp_path: Path, damage: str
) -> None:
    (tmp_path / ".file.part").write_bytes(b"of another file")
    if damage:
        (tmp_path / ".file.part.json").write_text(damage)
    fetch(server, tmp_path)
    assert server.ranges == [""]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("etag", "modified", "checksum", "resumes"),
    [
        ("", "Mon, 24 Nov 2025 10:00:00 GMT", "", True),
        ('W/"1"', "", "", False),
        ("", "", "", False),
        ("", "", f"sha256:{SHA256}", True),
    ],
)
def test_a_part_is_gone_on_with_where_the_file_can_be_known_again(
    server: FileServer, tmp_path: Path, etag: str, modified: str, checksum: str, resumes: bool
) -> None:
    server.etag, server.modified = etag, modified
    leave_part(server, tmp_path, 120_000, checksum=checksum)
    fetch(server, tmp_path, checksum=checksum)
    assert server.ranges == ["bytes=120000-" if resumes else ""]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_longer_than_the_file(server: FileServer, tmp_path: Path) -> None:
    leave_part(server, tmp_path, 120_000)
    with (tmp_path / ".file.part").open("ab") as part:
        part.write(bytes(400_000))
    fetch(server, tmp_path)
    assert server.ranges == ["bytes=520000-", ""]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_another_range_than_was_asked_for(server: FileServer, tmp_path: Path) -> None:
    leave_part(server, tmp_path, 120_000)
    server.shift = 7
    fetch(server, tmp_path)
    assert server.ranges == ["bytes=120000-", ""]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_corrupted_content_is_refused_and_not_kept(server: FileServer, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    for checksum in (f"sha256:{SHA256}", f"md5:{MD5}"):
        kind = checksum.partition(":")[0]
        with pytest.raises(DataError, match=rf"/file: its {kind} is \w+, published is \w+; remove"):
            fetch(server, tmp_path, checksum=checksum)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_what_the_server_refuses_is_not_asked_again(
    server: FileServer, tmp_path: Path, code: int
) -> None:
    server.answers = [code]
    with pytest.raises(DataError, match=rf"/file: HTTP {code} \w+.*; the address may have changed"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path, code: int) -> None:
    server.answers = [code, code]
    assert fetch(server, tmp_path).sha256 == SHA256
    server.answers = [code] * 3
    with pytest.raises(DataError, match=rf"HTTP {code} .*; given up after 3 attempts, 0 bytes are"):
        fetch(server, tmp_path / "other")


def test_no_server(server: FileServer, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(DataError, match=r"no connection \(.*refused.*\); given up after 3 att"):
            download(RemoteFile(name="file", url=url), tmp_path, patience=HASTY)


def test_a_server_that_falls_silent(server: FileServer, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        file = RemoteFile(name="file", url=f"http://127.0.0.1:{silent.getsockname()[1]}/")
        patience = Patience(num_attempts=2, first_wait_s=0.01, timeout_s=0.1)
        with pytest.raises(DataError, match=r"no connection \(.*timed out.*given up after 2 att"):
            download(file, tmp_path, patience=patience)


def test_another_size_than_the_table_s(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/file: 300,000 bytes at the server, 299,999 in the t"):
        fetch(server, tmp_path, size_bytes=299_999)


@pytest.mark.parametrize("checksum", ["", f"sha256:{SHA256}"])
def test_a_server_that_tells_no_size(server: FileServer, tmp_path: Path, checksum: str) -> None:
    server.length = ""
    if checksum:
        assert fetch(server, tmp_path, checksum=checksum).size_bytes == 300_000
    else:
        with pytest.raises(DataError, match=r"/file: the server does not tell the size, so a brok"):
            fetch(server, tmp_path)


def test_a_web_page_is_no_file(server: FileServer, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DataError, match=r"/file: the server sends a web page, not file; it may"):
        fetch(server, tmp_path)


def test_more_than_the_disk_has_room_for(server: FileServer, tmp_path: Path) -> None:
    server.length = str(10**18)
    with pytest.raises(DataError, match=r"/file: 1,000,000,000,000,000,000 bytes are to come, "):
        fetch(server, tmp_path)


def test_a_file_that_is_there_is_checked(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    found = fetch(server, tmp_path, checksum=f"sha256:{SHA256}")
    assert (found.is_new, found.checked) == (False, "published sha256")
    with pytest.raises(DataError, match=r"/file \(there already\): 300,000 bytes, the table s"):
        fetch(server, tmp_path, size_bytes=7)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match=r"/file \(there already\): its sha256 is 2d71"):
        fetch(server, tmp_path, checksum=f"sha256:{SHA256}")
    assert server.ranges == []


def test_the_first_download_is_what_later_ones_are_held_against(
    server: FileServer, tmp_path: Path
) -> None:
    first = fetch(server, tmp_path)
    assert first.checked == (
        "nothing: no checksum is published; its sha256 stands in checksums.sha256 from now on"
    )
    assert fetch(server, tmp_path).checked == "sha256 recorded in checksums.sha256"
    (tmp_path / "file").write_bytes(b"altered")
    with pytest.raises(DataError, match=r"stands in checksums\.sha256 since the first download"):
        fetch(server, tmp_path)
    (tmp_path / "file").unlink()
    server.content = bytes(1000)
    with pytest.raises(DataError, match=r"stands in checksums\.sha256 since the first download"):
        fetch(server, tmp_path)
    (tmp_path / RECORD).unlink()
    assert fetch(server, tmp_path, size_bytes=1000).checked.startswith("its size alone: no check")


def test_a_folder_that_is_a_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"")
    with pytest.raises(DataError, match=r"/raw/file: the disk refuses: .*; check the path, its di"):
        fetch(server, tmp_path / "raw")


def test_a_full_disk_is_told_and_what_has_come_is_kept(server: FileServer, tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from fastdlrm.data.download import download;"
        "from fastdlrm.data.remote import RemoteFile;"
        "download(RemoteFile(name='file', url=sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))

    done = subprocess.run(
        [sys.executable, "-c", script, server.url, tmp_path],
        capture_output=True, text=True, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert "DataError" in done.stderr
    assert "/file: the disk refuses: [Errno 27] File too large; free disk space" in done.stderr
    assert not (tmp_path / "file").exists()
    assert fetch(server, tmp_path).resumed_at_byte == 65_536
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_waits_double(monkeypatch: pytest.MonkeyPatch, server: FileServer, tmp_path: Path) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.answers = [503] * 20
    file = RemoteFile(name="file", url=server.url)
    with pytest.raises(DataError, match="given up after 9 attempts"):
        download(file, tmp_path, patience=Patience(num_attempts=9, first_wait_s=1.0))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
