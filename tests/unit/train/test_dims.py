"""A rule for widths, worked out for a run: its manifest, its messages, its resumption."""

from pathlib import Path

import pytest

from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError
from fastdlrm.model.layout import layout_of
from fastdlrm.train.dims import describe_mixed_dims, with_table_dims
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from fastdlrm.train.workload import workload_of
from tests.builders import tiny_dataset, tiny_recipe

ALPHA = "model.mixed_dims={alpha=0.3, threshold_rows=20}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("dims"), 3000)


def rows_of(dataset: Dataset) -> dict[str, int]:
    return {n: t.num_embeddings for n, t in dataset.manifest.encoding.tables.items()}


def expected(dataset: Dataset) -> dict[str, int]:
    """4 (n_min / n)^0.3, rounded; tables of 20 rows or fewer are 4 wide."""
    rows = rows_of(dataset)
    least = min(rows.values())
    return {t: 4 if n <= 20 else max(1, round(4 * (least / n) ** 0.3)) for t, n in rows.items()}


def resolved(dataset: Dataset, *overrides: str) -> Recipe:
    recipe = tiny_recipe(*overrides)
    return with_table_dims(recipe, dataset.schema, dataset.manifest.encoding)


def test_a_run_says_what_it_has(dataset: Dataset, tmp_path: Path) -> None:
    dims, said = expected(dataset), list[str]()
    assert len(set(dims.values())) > 2
    recipe = tiny_recipe(ALPHA, "model.table_projection=true", "train.max_steps=4")
    run = Run.create(tmp_path / "run", recipe, dataset)
    assert Run.open(tmp_path / "run").recipe.model.table_dims == dims
    Trainer(run, dataset, on_message=said.append).train()
    num_bytes = 4 * sum(n * dims[t] for t, n in rows_of(dataset).items())
    line = next(line for line in said if line.startswith("mixed dims"))
    assert line.startswith(
        f"mixed dims: alpha 0.3: {num_bytes:,} bytes; columns: C1 {dims['C1']}, "
    )
    assert any(f"narrower than 4: {num_bytes / 1024:.2f} KiB instead" in line for line in said)
    tables = run.load_model("last").tables.state_tensors()
    assert {name: table.shape[1] for name, table in tables.items()} == dims
    again = Run.resume(tmp_path / "run", recipe, dataset)
    assert again.recipe.model == run.recipe.model
    other = tiny_recipe("model.mixed_dims={alpha=0.4}", "model.table_projection=true")
    with pytest.raises(ConfigError, match=r"--resume .*: model.mixed_dims differs from the run's"):
        Run.resume(tmp_path / "run", other, dataset)


def test_a_budget_is_said(dataset: Dataset) -> None:
    whole = 2 * 4 * sum(rows_of(dataset).values())  # bf16
    budget = whole // 2
    recipe = resolved(
        dataset, f"model.mixed_dims={{budget_bytes={budget}}}", "train.table_dtype='bf16'"
    )
    layout = layout_of(recipe.model, dataset.schema, dataset.manifest.encoding)
    assert 0.8 * budget < 2 * layout.num_numbers <= budget
    (line,) = describe_mixed_dims(recipe, dataset.schema, dataset.manifest.encoding)
    assert f"for {budget:,} bytes or fewer: {2 * layout.num_numbers:,} bytes; columns: C1" in line
    assert workload_of(recipe, dataset).table_dims == layout.narrow_dims


def test_compressed_tables_are_left_out(dataset: Dataset) -> None:
    compressed = "model.compression={tables={C1={kind='hash', num_rows=30}}}"
    recipe = resolved(dataset, "model.mixed_dims={alpha=0.3}", compressed)
    assert "C1" not in recipe.model.table_dims
    assert len(recipe.model.table_dims) == len(dataset.schema.tables) - 1
    assert layout_of(recipe.model, dataset.schema, dataset.manifest.encoding).dims["C1.hash"] == 4


def test_what_is_worked_out_stays(dataset: Dataset) -> None:
    recipe = resolved(dataset, ALPHA)
    assert with_table_dims(recipe, dataset.schema, dataset.manifest.encoding) is recipe
    plain = tiny_recipe()
    assert resolved(dataset) == plain
    assert describe_mixed_dims(plain, dataset.schema, dataset.manifest.encoding) == []


def test_a_rule_and_other_widths(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"table_dims.C1 is 4, model.mixed_dims makes it \d;"):
        resolved(dataset, ALPHA, "model.table_dims={C1=4}")
    with pytest.raises(ConfigError, match=r"without the columns it comes to; set model.table_dims"):
        layout_of(tiny_recipe(ALPHA).model, dataset.schema, dataset.manifest.encoding)
