"""Training and serving score alike: raw rows over the network as `fastdlrm predict` scores them.

Rows are of the test split, so they hold ids that training never saw and missing values. They are
sent as the log has them, as text, without the spaces that the log may have around it.
"""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdlrm.contracts.delta import DELTAS, Delta, write_delta
from fastdlrm.contracts.exported import ExportedManifest
from fastdlrm.contracts.manifest import read_manifest
from fastdlrm.errors import ExportError
from tests.builders import fastdlrm, invoke, shared_data
from tests.e2e.serving import ServerProcess, columns_body, rows_of, scores_of, served

pytestmark = pytest.mark.xdist_group("serving")
NUM_ROWS = 200
NUM_TRAIN_LINES = 1500
BAGS = Path(__file__).with_name("bags.toml")


class Log(NamedTuple):
    """Raw files of a data set, the last of them the test split."""

    config: str
    files: tuple[Path, ...]
    delimiter: str
    columns: tuple[str, ...]
    label: str
    numbers: dict[str, str]
    """Columns that may be sent as numbers, and their datatype."""
    wrong: tuple[str, str]
    """A column, and a value that it cannot hold."""


class Trained(NamedTuple):
    """A model of a log, and what it says offline of the first rows of the test split."""

    log: Log
    run: Path
    models: Path
    columns: dict[str, list[str]]
    scores: np.ndarray


def _short(source: Path, target: Path, num_lines: int) -> Path:
    with gzip.open(source, "rb") as lines:
        target.write_bytes(b"".join(line for line, _ in zip(lines, range(num_lines), strict=False)))
    return target


def criteo(folder: Path) -> Log:
    """Some rows of three files of the Criteo sample."""
    days = shared_data() / "criteo_sample"
    files = [_short(days / f"day_{n}.gz", folder / f"{n}", NUM_TRAIN_LINES) for n in (0, 6, 7)]
    dense, sparse = [f"I{n}" for n in range(1, 14)], [f"C{n}" for n in range(1, 27)]
    return Log(
        config="criteo-sample",
        files=tuple(files),
        delimiter="\t",
        columns=("label", *dense, *sparse),
        label="label",
        numbers=dict.fromkeys(dense, "FP64"),
        wrong=("I3", "many"),
    )


def adult(folder: Path) -> Log:
    """Some rows of Adult; its fields have a space before them."""
    raw = shared_data() / "adult"
    files = [
        _short(raw / f"adult.{part}.gz", folder / part, NUM_TRAIN_LINES)
        for part in ("data", "test")
    ]
    columns = (
        *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status"),
        *("occupation", "relationship", "race", "sex", "capital_gain", "capital_loss"),
        *("hours_per_week", "native_country", "income"),
    )
    whole = ("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week")
    return Log(
        config="adult",
        files=tuple(files),
        delimiter=",",
        columns=columns,
        label="income",
        numbers=dict.fromkeys(whole, "INT64"),
        wrong=("age", "old"),
    )


def bags(folder: Path) -> Log:
    """A generated log with bags of words and of weighted numbers, hashed ids and quantiles."""
    draw = random.Random(5)
    files = []
    for name in ("0", "1", "2"):
        (folder / name).write_text("".join(_bag_row(draw) for _ in range(NUM_TRAIN_LINES)))
        files.append(folder / name)
    return Log(
        config=str(BAGS),
        files=tuple(files),
        delimiter="\t",
        columns=("clicked", "price", "item", "seen", "dwell", "words", "user"),
        label="clicked",
        numbers={"price": "FP64", "item": "INT64", "user": "INT64"},
        wrong=("item", "1.5"),
    )


def _bag_row(draw: random.Random) -> str:
    seen = [int(draw.paretovariate(0.6)) % 10**9 for _ in range(draw.randrange(5))]
    dwell = [round(draw.random(), 3) for _ in seen]
    words = [draw.choice(["tea", "milk", "a & b", "ø", "x" * 40]) for _ in range(draw.randrange(4))]
    fields = [
        int(draw.random() < 0.1 + 0.1 * len(seen)),
        "" if draw.random() < 0.2 else round(draw.lognormvariate(2, 1), 2),
        int(draw.paretovariate(0.8)) % 10**12,
        "|".join(map(str, seen)),
        "|".join(map(str, dwell)),
        "|".join(words),
        draw.randrange(-100, 100),
    ]
    return "\t".join(map(str, fields)) + "\n"


@pytest.fixture(scope="module", params=[criteo, adult, bags], ids=lambda make: make.__name__)
def trained(request, tmp_path_factory) -> Trained:
    """A model trained for moments, exported with tables in fp32 and in int8, verified on test."""
    make: Callable[[Path], Log] = request.param
    folder = tmp_path_factory.mktemp(make.__name__)
    (folder / "log").mkdir()
    log = make(folder / "log")
    data, run, models = folder / "data", folder / "run", folder / "models"
    inputs = [word for file in log.files for word in ("--input", file)]
    invoke("prepare", "--config", log.config, *inputs, "--out", data)
    quick = ("--set", "train.num_epochs=1")
    invoke("train", "--config", log.config, "--data", data, "--out", run, *quick)
    for name, more in (("fp32", ()), ("int8", ("--tables", "int8", "--max-auc-drop", 0.1))):
        out = models / name / "1"
        options = ("--max-ne-rise", 0.1, "--name", name, *more)
        invoke("export", "--run", run, "--data", data, "--out", out, *options)
    lines = log.files[-1].read_text().splitlines(keepends=True)[:NUM_ROWS]
    rows = folder / "rows.txt"
    rows.write_text("".join(lines))
    fields = [line.rstrip("\n").split(log.delimiter) for line in lines]
    columns = {
        name: [row[at].strip() for row in fields]
        for at, name in enumerate(log.columns)
        if name != log.label
    }
    return Trained(log, run, models, columns, offline(run, rows, folder / "scores.parquet"))


def offline(run: Path, rows: Path, out: Path) -> np.ndarray:
    """What `fastdlrm predict` says of raw rows."""
    return predicted(out, "--run", run, "--input", rows)


def predicted(out: Path, *arguments: object) -> np.ndarray:
    """The scores that `fastdlrm predict` writes."""
    invoke("predict", *arguments, "--out", out)
    return pq.read_table(out).column("score").to_numpy()


@pytest.fixture(scope="module")
def answering(trained, tmp_path_factory):
    """A server of both exports that waits a little for requests to merge."""
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    flags = ("--workers", 2, "--set", "batching.max_queue_delay_ms=5")
    with served(trained.models, log, *flags) as running:
        yield running


def asked(server: ServerProcess, bodies: Sequence[Any], model: str = "fp32") -> np.ndarray:
    """The scores of many requests, eight of them at a time, joined."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: server.infer(body, model), bodies))
    for answer in answers:
        assert answer.status == 200, answer.body
    return np.concatenate([scores_of(answer) for answer in answers])


@pytest.mark.parametrize("rows_a_request", [1, 7, 100])
def test_scores_equal_predict_bit_for_bit(trained, answering, rows_a_request):
    starts = range(0, NUM_ROWS, rows_a_request)
    bodies = [columns_body(rows_of(trained.columns, n, n + rows_a_request)) for n in starts]
    before = answering.metric("fastdlrm_batches_total", model="fp32")
    found = asked(answering, bodies)
    batches = answering.metric("fastdlrm_batches_total", model="fp32") - before
    assert len(found) == len(trained.scores) == NUM_ROWS
    np.testing.assert_array_equal(found.view(np.int32), trained.scores.view(np.int32))
    if rows_a_request == 1:
        assert 0 < batches < len(bodies) / 2  # several requests a batch, or this shows little


def test_rows_hold_what_training_never_saw(trained):
    seen: dict[str, set[str]] = {name: set() for name in trained.columns}
    for file in trained.log.files[:-1]:
        for line in file.read_text().splitlines():
            fields = line.split(trained.log.delimiter)
            for name, value in zip(trained.log.columns, fields, strict=False):
                if name in seen:
                    seen[name].add(value.strip())
    unseen = [n for n, values in trained.columns.items() if set(values) - seen[n] - {""}]
    missing = [n for n, values in trained.columns.items() if {"", "?"} & set(values)]
    assert unseen
    assert missing


def test_white_space_around_a_text_is_no_part_of_it_as_in_the_log(trained, answering):
    columns = {
        name: [f"\t {text} " if row % 3 else text for row, text in enumerate(texts)]
        for name, texts in trained.columns.items()
    }
    np.testing.assert_array_equal(asked(answering, [columns_body(columns)]), trained.scores)


def test_numbers_may_come_as_numbers(trained, answering):
    body = columns_body(trained.columns)
    for tensor in body["inputs"]:
        if tensor["name"] in trained.log.numbers:
            tensor["datatype"] = trained.log.numbers[tensor["name"]]
            tensor["data"] = [json.loads(text) if text else None for text in tensor["data"]]
    np.testing.assert_array_equal(asked(answering, [body]), trained.scores)


def test_a_value_for_all_rows_comes_once(trained, answering):
    shared = list(trained.columns)[: len(trained.columns) * 2 // 3]  # a bag and its weights alike
    columns = {
        name: values[:1] * NUM_ROWS if name in shared else values
        for name, values in trained.columns.items()
    }
    short = {name: values[:1] if name in shared else values for name, values in columns.items()}
    whole, once = (asked(answering, [columns_body(sent)]) for sent in (columns, short))
    np.testing.assert_array_equal(whole, once)
    assert len(set(whole.tolist())) > 1


def test_the_native_routes_score_the_same(trained, answering):
    rows = [
        {name: values[row] for name, values in trained.columns.items()} for row in range(NUM_ROWS)
    ]
    answer = answering.ask("POST", "/v1/models/fp32:score", {"rows": rows})
    assert answer.status == 200, answer.body
    np.testing.assert_array_equal(np.array(answer.json()["scores"], np.float32), trained.scores)


def test_int8_differs_by_no_more_than_its_manifest_says(trained, answering):
    manifest = json.loads((trained.models / "int8" / "1" / "manifest.json").read_text())
    (bound,) = (
        quality["max_logit_difference"]
        for quality in manifest["quality"]
        if quality["tables"] == "int8"
    )
    found = asked(answering, [columns_body(trained.columns)], "int8").astype(np.float64)
    logits = [np.log(scores / (1 - scores)) for scores in (found, trained.scores.astype(float))]
    difference = np.abs(logits[0] - logits[1]).max()
    assert 0 < difference <= bound + 1e-5  # what float32 keeps of a probability


def write_changes(folder: Path) -> int:
    """Deltas that replace the frequent rows of every table; how many they are."""
    manifest = read_manifest(folder, ExportedManifest, ExportError)
    draw, dim = np.random.default_rng(5), manifest.config["model"]["embedding_dim"]
    for number, table in enumerate(manifest.schema.tables, 1):
        ids = np.arange(min(40, manifest.encoding.tables[table.name].num_embeddings))
        rows = draw.normal(0, 0.3, (len(ids), dim)).astype(np.float32)
        write_delta(folder / DELTAS, Delta(table.name, ids, rows, number, time.time()))
    return len(manifest.schema.tables)


@pytest.mark.parametrize("trained", [bags], indirect=True, ids=["bags"])
def test_after_deltas_too(trained, tmp_path):
    models = shutil.copytree(trained.models, tmp_path / "models")
    rows, out = trained.models.parent / "rows.txt", tmp_path / "scores.parquet"
    with served(models, tmp_path / "log.jsonl", "--set", "watch.every_s=0.05") as server:
        for name in ("fp32", "int8"):
            folder = models / name / "1"
            before = predicted(out, "--model", folder, "--input", rows)
            num_deltas = write_changes(folder)
            server.event("delta_applied", count=num_deltas * (1 + (name == "int8")))
            after = predicted(out, "--model", folder, "--input", rows)
            assert (before != after).mean() > 0.9
            found = asked(server, [columns_body(trained.columns)], name)
            np.testing.assert_array_equal(found.view(np.int32), after.view(np.int32))
            as_exported = predicted(out, "--model", folder, "--input", rows, "--no-deltas")
            np.testing.assert_array_equal(as_exported.view(np.int32), before.view(np.int32))


def test_what_predict_refuses_the_server_refuses(trained, answering, tmp_path):
    log = trained.log
    column, text = log.wrong
    row = {name: values[3] for name, values in trained.columns.items()} | {column: text}
    answer = answering.infer(columns_body({name: [value] for name, value in row.items()}), "fp32")
    assert answer.status == 400, answer.body
    told = answer.json()["error"]
    assert column in told
    assert text in told
    labels = {"income": "<=50K"}
    line = log.delimiter.join(
        {log.label: labels.get(log.label, "0"), **row}[n] for n in log.columns
    )
    (tmp_path / "row.txt").write_text(line + "\n")
    said = fastdlrm(
        *("predict", "--run", trained.run, "--input", tmp_path / "row.txt"),
        *("--out", tmp_path / "scores.parquet"),
        code=1,
    )
    assert column in said
    assert text in said


def test_a_column_that_is_absent_is_named(trained, answering):
    columns = dict(trained.columns)
    name = list(columns)[2]
    del columns[name]
    answer = answering.infer(columns_body(columns), "fp32")
    assert answer.status == 400
    assert repr(name) in answer.json()["error"]


def as_bags(columns):
    """Columns as inputs, the bags as their values and lengths."""
    body = columns_body(columns)
    kinds = {"seen": ("INT64", int), "dwell": ("FP32", float), "words": ("BYTES", str)}
    inputs = [tensor for tensor in body["inputs"] if tensor["name"] not in kinds]
    for name, (datatype, of_text) in kinds.items():
        split = [[of_text(v) for v in text.split("|") if v] for text in columns[name]]
        values = [value for row in split for value in row]
        inputs.append({"name": name, "shape": [len(values)], "datatype": datatype, "data": values})
        lengths = [len(row) for row in split]
        inputs.append(
            {
                "name": f"{name}.lengths",
                "shape": [len(lengths)],
                "datatype": "INT32",
                "data": lengths,
            }
        )
    return inputs


@pytest.mark.parametrize("trained", [bags], indirect=True, ids=["bags"])
def test_bags_may_come_as_values_and_lengths(trained, answering):
    body = {"inputs": as_bags(trained.columns)}
    np.testing.assert_array_equal(asked(answering, [body]), trained.scores)


COLD = """
import json, pathlib, sys
from numba.core.event import install_recorder
from fastdlrm.contracts.wire import decode_infer
from fastdlrm.errors import RequestError
from fastdlrm.export.model import ExportedModel
from fastdlrm.serve.exported import ServedExport

with install_recorder("numba:compile") as before:
    model = ExportedModel.load(pathlib.Path(sys.argv[1]))
    served = ServedExport(model)
    served.warm(16)
with install_recorder("numba:compile") as later:
    for body in json.load(sys.stdin):
        inputs = decode_infer(json.dumps(body).encode(), None, model_name="m").inputs
        try:
            part = model.encoder.encode(inputs, 0, model.encoder.num_rows(inputs))
        except RequestError:
            continue
        served.predict([part, part])
print(json.dumps([len(before.buffer), [str(event.data) for _, event in later.buffer]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("trained", [bags], indirect=True, ids=["bags"])
def test_no_request_waits_for_code_to_be_compiled(trained, tmp_path):
    columns = rows_of(trained.columns, 0, 9)
    numbers = columns_body(columns)
    for tensor in numbers["inputs"]:
        if tensor["name"] in trained.log.numbers:
            tensor["datatype"] = trained.log.numbers[tensor["name"]]
            tensor["data"] = [json.loads(text) if text else None for text in tensor["data"]]
    wrong = columns_body(columns | {"item": ["1.5"] * 9})
    bodies = [columns_body(columns), numbers, wrong, {"inputs": as_bags(columns)}]
    done = subprocess.run(
        [sys.executable, "-c", COLD, str(trained.models / "fp32" / "1")],
        input=json.dumps(bodies),
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    num_before, later = json.loads(done.stdout.splitlines()[-1])
    assert num_before > 0
    assert later == []
