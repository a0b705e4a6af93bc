"""Probes on texts of machines that are not at hand."""

from pathlib import Path

import pytest

from fastdlrm.bench import host
from fastdlrm.contracts.host import Fact

XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8480C
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_tile
bugs\t\t: spectre_v1

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480C
flags\t\t: fpu sse2
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd sve bf16
CPU implementer\t: 0x41
"""
MEMINFO = "MemTotal:       24684084 kB\nMemFree:        24244612 kB\nHugePages_Total:       0\n"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"


def test_processor() -> None:
    assert host.parse_cpu_model(XEON).value == "Intel(R) Xeon(R) Platinum 8480C"
    assert host.parse_cpu_model(GRAVITON) == Fact(reason="unknown: /proc/cpuinfo names no model")


@pytest.mark.parametrize(
    ("flag", "on_xeon", "on_graviton"),
    [("avx2", True, False), ("avx512f", True, False), ("avx", False, False), ("sve", False, True)],
)
def test_flags_are_whole_words_of_the_first_core(
    flag: str, on_xeon: bool, on_graviton: bool
) -> None:
    assert host.parse_cpu_flag(flag, XEON).value is on_xeon
    assert host.parse_cpu_flag(flag, GRAVITON).value is on_graviton


def test_no_flags_is_unknown_not_false() -> None:
    assert host.parse_cpu_flag("avx2", "processor : 0\n") == Fact(
        reason="unknown: /proc/cpuinfo lists no flags"
    )


def test_memory_is_in_bytes() -> None:
    # 24684084 * 1024.
    assert host.parse_memory("MemTotal", MEMINFO).value == 25_276_502_016
    assert host.parse_memory("MemAvailable", MEMINFO) == Fact(
        reason="unknown: /proc/meminfo has no MemAvailable"
    )


def test_driver() -> None:
    assert host.parse_driver(DRIVER).value == "550.54.15"
    assert host.parse_driver(OPEN_DRIVER).value == "570.86.15"
    assert "names no release" in host.parse_driver("").reason


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_of_version_2_is_the_least_on_the_way_up(tmp_path: Path) -> None:
    write(tmp_path / "pod/box/cpu.max", "max 100000\n")
    write(tmp_path / "pod/cpu.max", "150000 100000\n")
    write(tmp_path / "pod/other/cpu.max", "100 100000\n")
    write(tmp_path / "pod/memory.max", "2147483648\n")
    write(tmp_path / "pod/box/memory.max", "max\n")
    assert host.core_quota("0::/pod/box\n", tmp_path).value == 1.5
    assert host.memory_limit("0::/pod/box\n", tmp_path).value == 2 * 2**30


def test_quota_of_version_1(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/box\n4:memory:/box\n0::/\n"
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cpu/box/cpu.cfs_quota_us", "100000\n")
    write(tmp_path / "cpu/box/cpu.cfs_period_us", "50000\n")
    write(tmp_path / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert host.core_quota(groups, tmp_path).value == 2.0
    assert host.memory_limit(groups, tmp_path) == Fact(reason="none is set")
    write(tmp_path / "memory/box/memory.limit_in_bytes", "4096\n")
    assert host.memory_limit(groups, tmp_path).value == 4096


def test_no_quota(tmp_path: Path) -> None:
    assert host.core_quota("0::/box\n", tmp_path) == Fact(reason="none is set")
    assert host.core_quota("", tmp_path) == Fact(reason="none is set")


@pytest.mark.parametrize(
    ("cuda", "hidden", "driver", "reason"),
    [
        (None, True, Fact(value="550.1"), "torch 2.13.0 is built without CUDA; install a CUDA"),
        ("12.8", True, Fact(value="550.1"), "CUDA_VISIBLE_DEVICES hides every GPU; unset it"),
        ("12.8", False, Fact(reason="unknown"), "no NVIDIA driver is loaded; install one"),
        ("12.8", False, Fact(value="550.1"), "driver 550.1 is loaded, yet CUDA 12.8 finds no GPU"),
    ],
)
def test_why_there_is_no_gpu(cuda: str | None, hidden: bool, driver: Fact, reason: str) -> None:
    found = host.why_no_gpu(torch_version="2.13.0", cuda=cuda, hidden=hidden, driver=driver)
    assert reason in found


def test_a_machine_without_proc_is_described_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def without_proc(path: Path, *args: str, **kwargs: str) -> str:
        if path.is_relative_to("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", without_proc)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    found = host.probe()
    for fact in (found.cpu_model, found.memory_bytes, found.core_quota, found.num_usable_cores):
        assert fact.value is None
        assert fact.reason.startswith("unknown: ")
    assert found.instruction_sets["avx2"].reason.startswith("unknown: /proc/cpuinfo: No such file")
