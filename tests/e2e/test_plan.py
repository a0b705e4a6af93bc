"""`fastdlrm plan` as a user runs it."""

import json
import re
from pathlib import Path

import pytest

from fastdlrm.parallel.plan import read_plan
from tests.builders import fastdlrm, invoke, tiny_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    tiny_dataset(folder, 2000)
    return folder


def arguments(folder: Path, *more: str) -> tuple[str, ...]:
    return ("plan", "--config", "tiny", "--data", str(folder / "data"), *more)


def test_a_table_a_rank_and_a_file(folder: Path) -> None:
    out = folder / "plan.json"
    text = fastdlrm(*arguments(folder, "--gpus", "4", "--topology", "h100x8", "--out", str(out)))
    lines = text.splitlines()
    assert lines[0].startswith("KiB held by each rank")
    assert [line.split()[0] for line in lines[2:6]] == ["0", "1", "2", "3"]
    assert "predicted on h100x8" in text
    assert "…" not in text
    plan = read_plan(out)
    plan.require_fit(plan.num_embeddings, 4, 4)


def test_what_compression_leaves_is_said(folder: Path) -> None:
    quarters = "model.compression={default={kind='quotient_remainder'}, threshold_rows=50}"
    text = invoke(*arguments(folder, "--gpus", "2", "--topology", "h100x8", "--set", quarters))
    assert re.search(r"^compression of \d of 6 tables: [\d,]+ rows instead of", text, re.MULTILINE)


def test_json_is_all_of_it(folder: Path) -> None:
    """And the machine need not be here."""
    more = ("--topology", "h200x2", "--set", "train.device='cuda'", "--json")
    found = json.loads(fastdlrm(*arguments(folder, *more)))
    assert len(found["prediction"]["ranks"]) == found["plan"]["world_size"] == 2
    assert found["least_ranks"] == 1
    assert found["topology"]["name"] == "h200x2"


def test_this_machine_is_measured(folder: Path) -> None:
    assert "predicted on measured" in fastdlrm(*arguments(folder))


def test_what_does_not_fit(folder: Path) -> None:
    more = ("--ranks", "2", "--topology", "cpu", "--memory", "2KiB")
    text = fastdlrm(*arguments(folder, *more), code=1)
    assert text.startswith("error: plan: 2 ranks of 2.00 KiB cannot hold the tables")
    assert text.count("(too much)") == 2


def test_a_machine_without_a_name(folder: Path) -> None:
    assert "topology 'v100'" in fastdlrm(*arguments(folder, "--topology", "v100"), code=2)


@pytest.mark.slow
def test_two_ranks_measure_each_other(folder: Path) -> None:
    found = json.loads(fastdlrm(*arguments(folder, "--ranks", "2", "--json")))
    assert found["plan"]["world_size"] == found["topology"]["num_ranks"] == 2
    assert found["topology"]["exchange_gb_s"] > 0
    assert found["topology"]["latency_us"] > 0
