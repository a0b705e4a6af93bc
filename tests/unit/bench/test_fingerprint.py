import torch

from fastdlrm.bench.fingerprint import caches, fingerprint, governor, smt
from fastdlrm.contracts.host import Cache


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_what_the_system_says_of_its_cores(tmp_path):
    files = {"smt/active": "1", "cpu0/cpufreq/scaling_governor": "performance"}
    for index, (level, kind, size, shared) in enumerate(
        [("1", "Data", "48K", "0,4"), ("3", "Unified", "266240K", "0-2,8")]
    ):
        folder = f"cpu0/cache/index{index}"
        files |= {f"{folder}/level": level, f"{folder}/type": kind, f"{folder}/size": size}
        files[f"{folder}/shared_cpu_list"] = shared
    write(tmp_path, files)
    assert caches(tmp_path) == (
        Cache(level=1, kind="Data", size_bytes=48 * 1024, num_sharing=2),
        Cache(level=3, kind="Unified", size_bytes=260 * 2**20, num_sharing=4),
    )
    assert smt(tmp_path).value is True
    assert governor(tmp_path).value == "performance"


def test_what_it_does_not_say_is_unknown(tmp_path):
    write(tmp_path, {"cpu0/cache/index0/level": "1"})
    assert caches(tmp_path) == ()
    assert smt(tmp_path).value is None
    assert smt(tmp_path).reason.startswith("unknown: no ")
    assert "a virtual machine does not show it" in governor(tmp_path).reason


def test_this_machine():
    found = fingerprint(torch.device("cpu"), 0.25)
    assert found.copy_gb_s["cpu"] > 0.1
    assert found.load_average == 0.25
    assert torch.__version__.startswith(found.versions["torch"])
    assert found.num_threads == torch.get_num_threads()
