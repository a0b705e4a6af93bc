import torch

from fastdlrm.kernels.cpu.pages import PAGE_BYTES, advise_large_pages


def test_advice_changes_no_number() -> None:
    for num_bytes in (0, 100, 3 * PAGE_BYTES + 5):
        tensor = torch.zeros(num_bytes, dtype=torch.uint8)
        advise_large_pages(tensor)
        assert not tensor.any()
    advise_large_pages(torch.empty(10, device="meta"))
