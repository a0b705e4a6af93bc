"""Every kernel compiles for an H100, without one: what the interpreter does not find.

A variable that changes its type between branches, more shared memory than there is, spilled
registers.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton")

KERNELS = Path(__file__).resolve().parents[4] / "src" / "fastdlrm" / "kernels" / "cuda"
PROGRAM = Path(__file__).with_name("compile_only.py")
SHARED_BYTES = 227 * 1024
"""Most shared memory of a block on an H100."""
CALL_BYTES = 8
"""Stack of a call, as an exact division makes in rare cases; a spilled register takes more."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What the program found, compiled anew."""
    cache = tmp_path_factory.mktemp("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(cache), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(compiled: list[dict[str, object]]) -> None:
    """Tested as one: under xdist each worker would compile anew."""
    source = "".join(path.read_text() for path in KERNELS.glob("*.py"))
    names = re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)
    assert {kernel["name"] for kernel in compiled} == set(names)
    for kernel in compiled:
        assert not kernel["has_local_memory"], kernel
        assert kernel["stack_bytes"] <= CALL_BYTES, kernel
        assert kernel["shared_bytes"] <= SHARED_BYTES, kernel
        if kernel["name"] == "_masked_input_grad_kernel":
            assert kernel["has_wgmma"]
