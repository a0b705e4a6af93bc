import msgspec
import pytest

from fastdlrm.contracts.manifest import DatasetManifest, SplitInfo, read_manifest
from fastdlrm.data.parts import read_parts
from fastdlrm.errors import DataError
from tests.every_kind import every_kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    every_kind(folder)
    return folder / "data"


def test_a_split_shorter_than_the_manifest_says_is_refused(folder):
    manifest = read_manifest(folder, DatasetManifest)
    found = manifest.splits["test"].num_rows
    longer = {"test": SplitInfo(num_rows=found + 1, num_positives=0)}
    with pytest.raises(DataError, match=r"split 'test' holds 120 rows, the manifest says 121; pre"):
        read_parts(folder, msgspec.structs.replace(manifest, splits=longer), "test")


def test_what_is_no_arrow_file_is_refused(folder, tmp_path):
    manifest = read_manifest(folder, DatasetManifest)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "part-00000.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"part-00000\.arrow: not an Arrow file: .*; prepare again"):
        read_parts(tmp_path, manifest, "test")
