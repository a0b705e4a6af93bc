import gzip
import hashlib
import math
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from fastdlrm import __version__
from fastdlrm.data import generate as module
from fastdlrm.data.generate import TeacherReport, generate
from fastdlrm.data.teacher import (
    GAP,
    GAP_ID,
    NUM_HEAD_IDS,
    Teacher,
    dense_value,
    id_of_rank,
    rank_of_id,
    sparse_rank,
)
from fastdlrm.errors import ConfigError, DataError

LINE = re.compile(r"[01](\t(-?[1-9]\d*|0)?){13}(\t([0-9a-f]{8})?){26}\n")
NUM_ROWS = 50_000
SEED = 7


class Log(NamedTuple):
    folder: Path
    report: TeacherReport
    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray


def _parse(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [line.split("\t") for line in text.splitlines()]
    labels = np.array([int(row[0]) for row in rows])
    dense = np.array([[int(v) if v else GAP for v in row[1:14]] for row in rows])
    ids = np.array([[int(v, 16) if v else GAP_ID for v in row[14:]] for row in rows])
    return labels, dense, ids


def _text(folder: Path) -> str:
    parts = sorted(folder.glob("day_*"))
    return "".join(
        (gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()).decode()
        for p in parts
    )


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    folder = tmp_path_factory.mktemp("log")
    report = generate(folder, num_rows=NUM_ROWS, num_files=3, gzip=True, seed=SEED)
    return Log(folder, report, *_parse(_text(folder)))


def test_a_line_holds_a_label_13_integers_and_26_ids(log: Log) -> None:
    lines = _text(log.folder).splitlines(keepends=True)
    assert len(lines) == NUM_ROWS
    assert [line for line in lines if not LINE.fullmatch(line)] == []


def test_bytes_depend_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("one", "three", "other")}
    for name, seed, num_workers in (("one", 1, 1), ("three", 1, 3), ("other", 2, 1)):
        generate(
            folders[name],
            num_rows=40_000,
            num_files=2,
            gzip=True,
            seed=seed,
            num_workers=num_workers,
        )
    one, three, other = (_bytes(folder) for folder in folders.values())
    assert one == three
    assert all(one[name] != other[name] for name in one)


def test_plain_files_hold_the_same_rows(tmp_path: Path, log: Log) -> None:
    report = generate(tmp_path, num_rows=NUM_ROWS, num_files=2, gzip=False, seed=SEED)
    assert list(report.files) == ["day_0.tsv", "day_1.tsv"]
    assert _text(tmp_path) == _text(log.folder)


def test_compressed_files_are_one_member_without_a_date(log: Log) -> None:
    content = (log.folder / "day_0.gz").read_bytes()
    assert content[4:8] == bytes(4)  # RFC 1952: MTIME
    with gzip.open(log.folder / "day_0.gz") as file:
        assert int.from_bytes(content[-4:], "little") == len(file.read())  # RFC 1952: ISIZE


def test_report_tells_what_was_written(log: Log) -> None:
    report = log.report
    assert msgspec.json.decode((log.folder / "teacher.json").read_bytes(), type=TeacherReport) == (
        report
    )
    assert (report.created_by, report.seed) == (__version__, SEED)
    assert (report.num_rows, report.num_files) == (NUM_ROWS, 3)
    assert (report.gzip, report.shuffle_labels) == (True, False)
    # 50,000 = 16,667 + 16,667 + 16,666
    assert [entry.num_rows for entry in report.files.values()] == [16_667, 16_667, 16_666]
    for name, entry in report.files.items():
        content = (log.folder / name).read_bytes()
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert entry.size_bytes == len(content)
        assert gzip.decompress(content).count(b"\n") == entry.num_rows
    assert {path.name for path in log.folder.iterdir()} == {*report.files, "teacher.json"}


def test_teacher_is_a_function_of_the_written_values(log: Log) -> None:
    """Scores made from the parsed text alone give the reported AUC and log loss."""
    logits = Teacher(SEED).logits(log.dense, log.ids)
    assert log.report.auc == pytest.approx(
        roc_auc_score(log.labels, logits), abs=log.report.auc_error + 1e-12
    )
    assert log.report.auc_error < 1e-5
    probabilities = 1 / (1 + np.exp(-logits))
    assert log.report.log_loss == pytest.approx(log_loss(log.labels, probabilities), rel=1e-9)
    assert log.report.click_rate == log.labels.mean()


def _slow_logit(teacher: Teacher, dense: np.ndarray, ids: np.ndarray) -> float:
    """The formula at the head of the module, a pair at a time."""
    p = teacher.parameters
    fields = []
    for i, value in enumerate(dense.tolist()):
        if value == GAP:
            fields.append(p.gaps[i])
            continue
        distance = (math.log(1 + max(value, 0)) - p.centres[i]) / p.spreads[i]
        step, bump = distance / math.sqrt(1 + distance**2), 1 / (1 + distance**2)
        fields.append(p.curves[i] @ np.array([1.0, step, bump]))
    for i, identifier in enumerate(ids.tolist()):
        head = {id_of_rank(rank, p.id_keys[i]): rank for rank in range(NUM_HEAD_IDS)}
        head[GAP_ID] = -1
        fields.append(p.tables[i, head.get(identifier, NUM_HEAD_IDS) + 1])
    logit = p.bias + sum(field[0] for field in fields)
    for n, i in enumerate(p.interacting):
        for j in p.interacting[:n]:
            logit += fields[i][1:] @ fields[j][1:]
    return float(logit)


def test_logits_follow_the_stated_formula(log: Log) -> None:
    teacher = Teacher(SEED)
    expected = [_slow_logit(teacher, log.dense[row], log.ids[row]) for row in range(40)]
    np.testing.assert_allclose(teacher.logits(log.dense[:40], log.ids[:40]), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_every_seed_plants_about_the_same_signal(tmp_path: Path, seed: int) -> None:
    report = generate(tmp_path, num_rows=20_000, num_files=1, gzip=False, seed=seed)
    assert report.click_rate == pytest.approx(0.25, abs=0.02)
    assert report.auc == pytest.approx(0.825, abs=0.02)


def test_interactions_and_dense_features_carry_signal(log: Log) -> None:
    def share_of_the_way(**changed: np.ndarray) -> float:
        teacher = Teacher(SEED)
        best = roc_auc_score(log.labels, teacher.logits(log.dense, log.ids))
        teacher.parameters = teacher.parameters._replace(**changed)
        auc = roc_auc_score(log.labels, teacher.logits(log.dense, log.ids))
        return (auc - 0.5) / (best - 0.5)

    p = Teacher(SEED).parameters
    assert 0.9 < share_of_the_way(interacting=p.interacting[:0]) < 0.96
    assert share_of_the_way(curves=0 * p.curves, gaps=0 * p.gaps) < 0.9


def test_shuffled_labels_say_nothing_of_the_same_features(tmp_path: Path, log: Log) -> None:
    report = generate(
        tmp_path, num_rows=NUM_ROWS, num_files=3, gzip=True, seed=SEED, shuffle_labels=True
    )
    labels, dense, ids = _parse(_text(tmp_path))
    np.testing.assert_array_equal(dense, log.dense)
    np.testing.assert_array_equal(ids, log.ids)
    assert (report.shuffle_labels, report.auc, report.auc_error) == (True, 0.5, 0.0)
    assert report.click_rate == labels.mean() == pytest.approx(0.25, abs=0.01)
    assert report.log_loss == pytest.approx(log_loss(labels, np.full(NUM_ROWS, 0.25)))
    logits = Teacher(SEED).logits(dense, ids)
    # Standard error of the AUC of noise: sqrt((P + N + 1) / (12 P N)) = 0.003 for P = 12,500.
    assert roc_auc_score(labels, logits) == pytest.approx(0.5, abs=0.01)


def test_dense_fields_have_gaps_tails_and_negative_values(log: Log) -> None:
    is_gap = log.dense == GAP
    # The shares of Criteo's sample, see DENSE_FIELDS; I5 and I11 are empty together.
    np.testing.assert_allclose(is_gap.mean(axis=0)[[0, 1, 4, 10]], [0.2, 0, 0.41, 0.41], atol=0.01)
    np.testing.assert_array_equal(is_gap[:, 4], is_gap[:, 10])
    assert log.dense[:, 1].min() < 0
    i6 = log.dense[~is_gap[:, 5], 5]
    assert i6.max() > 1000 * np.median(i6)


def test_ids_are_skewed_and_of_many_cardinalities(log: Log) -> None:
    counts = [Counter(column[column != GAP_ID].tolist()) for column in log.ids.T]
    assert min(map(len, counts)) == 3  # C9
    assert max(map(len, counts)) > 5_000  # C3 in 50,000 rows
    assert np.mean(log.ids[:, 18] == GAP_ID) == pytest.approx(0.44, abs=0.01)
    # C17, 10 ids of Zipf exponent 1.2: shares are (r + 1)^-0.2 - (r + 2)^-0.2 over 1 - 11^-0.2.
    # Rank 0: (1 - 0.8706) / (1 - 0.6190) = 0.340; rank 1: (0.8706 - 0.8027) / 0.3810 = 0.178.
    top = [count / NUM_ROWS for _, count in counts[16].most_common(2)]
    assert top == pytest.approx([0.340, 0.178], abs=0.01)


@pytest.mark.parametrize(
    ("unit", "rank"), [(0.0, 0), (0.66, 0), (0.67, 1), (0.88, 1), (0.89, 2), (0.9999999, 2)]
)
def test_head_ranks_follow_zipf(unit: float, rank: int) -> None:
    # Exponent 2: 1/(r + 1) - 1/(r + 2) = 1/2, 1/6, 1/12 of 3/4, so 2/3, 2/9, 1/9.
    assert sparse_rank(unit, 3, 0.0, 2.0) == rank


def test_tail_ranks_are_flat() -> None:
    # The tail's half of the units covers ranks 256 .. 455 evenly: rank 256 + 200 * unit / 0.5.
    assert sparse_rank(0.0, 456, 0.5, 1.5) == 256
    assert sparse_rank(0.25, 456, 0.5, 1.5) == 356
    assert sparse_rank(0.4999, 456, 0.5, 1.5) == 455
    assert sparse_rank(0.5, 456, 0.5, 1.5) == 0


def test_dense_values_are_log_logistic() -> None:
    assert dense_value(0.5, -2, 40.0, 0.9) == 38  # odds 1: low + scale
    assert dense_value(0.8, 1, 10.0, 0.5) == 21  # odds 4: 1 + 10 * 4 ** 0.5
    assert dense_value(0.0, 1, 10.0, 0.5) == 1
    assert dense_value(1 - 2**-53, 1, 3000.0, 0.9) == 2**31 - 1  # never past 32 bits


def test_ids_are_a_bijection_of_ranks() -> None:
    # MurmurHash3_x86_32 of the empty text is its finaliser of the seed: published test vectors.
    assert id_of_rank(1, 0) == 0x514E28B7
    assert id_of_rank(0, 0xFFFFFFFF) == 0x81F16F39
    for rank in (0, 1, 255, 10_131_226):
        assert rank_of_id(id_of_rank(rank, 0xDEADBEEF), 0xDEADBEEF) == rank


def test_auc_of_a_histogram_by_hand() -> None:
    quality = module._Quality()
    logits, labels = np.array([-1.0, 0.0, 0.0, 2.0]), np.array([0, 0, 1, 1], dtype=np.uint8)
    quality.add(module._Chunk(b"", b"", logits, labels))
    # Of 4 pairs 3 are in order and 1 shares a bin: 3.5 / 4, at most half a pair off.
    assert quality.auc() == (0.875, 0.125)
    # log(1 + e^-1) + log 2 + log 2 + log(1 + e^-2) = 0.313262 + 1.386294 + 0.126928
    assert quality.loss == pytest.approx(1.826484, abs=1e-6)


def test_auc_of_one_class_is_unknown(tmp_path: Path) -> None:
    report = generate(tmp_path, num_rows=1, num_files=1, gzip=False, seed=1)
    assert (report.auc, report.auc_error) == (None, 0.0)


def test_no_more_chunks_are_alive_than_allowed() -> None:
    lock, started = threading.Lock(), []

    def make(first: int, last: int) -> module._Chunk:
        with lock:
            started.append(first)
        return module._Chunk(b"", b"", np.zeros(0), np.array([first], dtype=np.uint8))

    spans = ((i, i + 1) for i in range(50))
    with ThreadPoolExecutor(2) as pool:
        for num_taken, chunk in enumerate(module._in_order(pool, make, spans, 4)):
            assert chunk.labels[0] == num_taken
            assert len(started) <= num_taken + 4


def test_spans_end_with_their_file() -> None:
    assert list(module._spans([20_000, 3])) == [(0, 16_384), (16_384, 20_000), (20_000, 20_003)]


def test_progress_adds_up(tmp_path: Path) -> None:
    steps: list[int] = []
    generate(tmp_path, num_rows=40_000, num_files=2, gzip=True, seed=1, progress=steps.append)
    assert sum(steps) == 40_000
    assert len(steps) == 4


def test_a_run_that_fails_leaves_no_half_file(tmp_path: Path) -> None:
    def fail(num_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, num_rows=40_000, num_files=2, gzip=True, seed=1, progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_files": 0}, r"num_files is 0; 1 or more"),
        ({"num_workers": 0}, r"num_workers is 0; 1 or more"),
        ({"num_rows": 2}, r"2 rows for 3 files; a file takes 1 or more"),
        ({"seed": -1}, r"seed is -1; 0 \.\. 2\*\*64 - 1"),
        ({"seed": 2**64}, r"seed is 18446744073709551616; 0 \.\."),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, changed: dict[str, int], message: str) -> None:
    numbers = {"num_rows": 9, "num_files": 3, "seed": 1} | changed
    with pytest.raises(ConfigError, match=message):
        generate(tmp_path / "log", gzip=False, **numbers)
    assert not (tmp_path / "log").exists()


def test_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds 'notes\.txt' and so is not empty; name a folder"):
        generate(tmp_path, num_rows=9, num_files=1, gzip=False, seed=1)


@pytest.mark.parametrize("name", ["file", "file/log"])
def test_a_file_where_the_folder_goes(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"no such folder can be made: .*; name a folder"):
        generate(tmp_path / name, num_rows=9, num_files=1, gzip=False, seed=1)
