"""The tables of what is known of storages."""

from __future__ import annotations

import torch

from attnviz.capture.provenance import ByStorage


def test_storages_that_are_gone_are_forgotten_soon() -> None:
    """What remains of each lies between the blocks of the heap, which grows by the holes."""
    table: ByStorage[int] = ByStorage()
    kept = [torch.ones(3) for _ in range(40)]
    for number, tensor in enumerate(kept):
        table.put(tensor, number)
    most = 0
    for number in range(500):
        table.put(torch.ones(3), -number)
        most = max(most, len(table))
    assert most <= 2 * len(kept)
    assert [table.get(tensor) for tensor in kept] == list(range(40))
    few: ByStorage[int] = ByStorage()
    for number in range(500):
        few.put(torch.ones(3), number)
        assert len(few) <= 16


def test_another_storage_at_the_same_address_is_not_known() -> None:
    table: ByStorage[str] = ByStorage()
    for _ in range(100):
        assert table.get(torch.ones(3)) is None
        table.put(torch.ones(3), "gone")
