from fastdlrm.cli.dataset_text import dataset_text
from fastdlrm.data.dataset_statistics import dataset_statistics
from tests.every_kind import NOTHING_HELD_OUT, every_kind


def lines_of(text):
    """By first cell, the lines of all tables."""
    return {line.split("  ")[0].strip(): line for line in text.splitlines()}


def test_each_feature_has_a_line(tmp_path):
    every_kind(tmp_path)
    statistics = dataset_statistics(tmp_path / "data")
    text = dataset_text(statistics)
    lines = lines_of(text)
    assert text.startswith("data: 360 rows, 3 dense and 5 sparse features, 4 tables\n")
    for feature in statistics.dense:
        assert feature.transform in lines[feature.name]
    for feature in statistics.sparse:
        drift = feature.splits["test"].drift
        assert any(
            line.startswith(f"{feature.name} ")
            and f"{drift.distance:.3f} ({drift.chance:.3f})" in line
            for line in text.splitlines()
        )
    rate = statistics.splits["train"].num_positives / 204
    assert f"{rate:.4f}  shuffled" in lines["train"]
    assert f"{statistics.inputs[1].num_positives / 120:.4f}" in lines["day_1.parquet"]
    assert "all tables" in lines
    top = next(f for f in statistics.sparse if f.name == "user").top[0]
    assert f"row {top.id} {top.shares['train']:.1%}" in text  # a hash keeps no values
    # A value is shown on one line, whatever it holds.
    assert all(len(line) < 200 for line in text.splitlines())


def test_columns_of_splits_that_are_not_there_are_left_out(tmp_path):
    every_kind(tmp_path, split=NOTHING_HELD_OUT, sparse=())
    text = dataset_text(dataset_statistics(tmp_path / "data"))
    assert "drift" not in text
    assert "sparse feature" not in text.replace("sparse features", "")
    assert "validation" not in text
