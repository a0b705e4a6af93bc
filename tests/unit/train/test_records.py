import json

from fastdlrm.train.records import Records


def _read(path):
    return [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]


def test_records_are_appended(tmp_path):
    records = Records(tmp_path, step=0)
    records.add(10, "train", {"loss": 0.5}, {"samples_per_s": 1.0})
    records.close()
    assert _read(tmp_path) == [
        {"step": 10, "kind": "train", "values": {"loss": 0.5}, "timing": {"samples_per_s": 1.0}}
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_resume_drops_later_and_cut_records(tmp_path):
    records = Records(tmp_path, step=0)
    for step in (10, 20, 30):
        records.add(step, "train", {"loss": step / 100}, {})
    records.close()
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"step": 40, "ki')
    Records(tmp_path, step=20).close()
    assert [r["step"] for r in _read(tmp_path)] == [10, 20]
