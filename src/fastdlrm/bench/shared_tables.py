"""Tables that several processes map: one copy of their rows in memory.

The memory is anonymous (a memfd): nothing is left on disk or in /dev/shm however the processes end.
As of an exported model, the mapping is private: pages are shared since no one writes to them.

Shapes: R rows of all tables, D embedding dim.
"""

import os
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fastdlrm.bench.models import BenchModel
from fastdlrm.data.random_dataset import random_encoding
from fastdlrm.kernels.cpu.pages import advise_large_pages
from fastdlrm.model.build import around_tables
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.layout import layout_of

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


class SharedTables:
    """A model's tables, drawn into memory that other processes can map.

    It can be an argument of a process that is spawned, which inherits the memory.

    Args:
        model: Whose; it computes on the CPU.

    Attributes:
        fd: Of the memory.
    """

    def __init__(self, model: BenchModel) -> None:
        self.fd = os.memfd_create("fastdlrm-tables", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, model.table_bytes)
            config = model.recipe.model
            generator = torch.Generator().manual_seed(model.recipe.seed)
            tables = _map(model, self.fd, shared=True)
            tables.initialise(config.init, generator, config.embedding_std)
        except BaseException:
            self.close()
            raise

    def build(self, model: BenchModel) -> DLRM:
        """The model over these tables, all of their pages mapped.

        Args:
            model: As they were drawn for.
        """
        tables = _map(model, self.fd, shared=False).requires_grad_(False)
        tables.weight.view(torch.uint8).sum()  # a page that is first read is mapped then
        generator = torch.Generator().manual_seed(model.recipe.seed)
        return around_tables(model.recipe.model, model.schema, tables, generator)

    def __getstate__(self) -> Any:
        return DupFd(self.fd)

    def __setstate__(self, inherited: Any) -> None:
        self.fd = inherited.detach()

    def close(self) -> None:
        """Give the memory back; processes that still map it keep it until they end."""
        os.close(self.fd)

    def __enter__(self) -> "SharedTables":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def large_pages(folder: Path = LARGE_PAGES) -> dict[str, str]:
    """Whether the system backs memory with large pages: what is set for private and shared tables.

    Args:
        folder: Where it says so.
    """
    return {"private": _setting(folder / "enabled"), "shared": _setting(folder / "shmem_enabled")}


def _setting(path: Path) -> str:
    """The choice in brackets among all there are."""
    text = path.read_text() if path.is_file() else ""
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _map(model: BenchModel, fd: int, *, shared: bool) -> EmbeddingTables:
    """The tables in a file's memory; what is written to it others see only where it is shared."""
    layout = layout_of(model.recipe.model, model.schema, random_encoding(model.schema))
    num_rows, dim = sum(layout.num_embeddings.values()), model.recipe.model.embedding_dim
    flat = torch.from_file(
        f"/proc/self/fd/{fd}", shared=shared, size=num_rows * dim, dtype=model.table_dtype
    )
    advise_large_pages(flat)
    return EmbeddingTables(
        layout.num_embeddings,
        layout.feature_tables,
        embedding_dim=dim,
        pooling=layout.pooling,
        stack=flat.view(num_rows, dim),
    )
