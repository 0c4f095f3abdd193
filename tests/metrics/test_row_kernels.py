"""The passes over rows give the same bits by every way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnviz.metrics import row_kernels


@pytest.mark.parametrize("radix", [True, False])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [5, row_kernels._LONG - 1, row_kernels._LONG + 3])
def test_rows_are_sorted_alike_by_both_sorts(
    monkeypatch: pytest.MonkeyPatch, radix: bool, kind: torch.dtype, columns: int
) -> None:
    monkeypatch.setattr(row_kernels, "_radix_is_quicker", lambda: radix)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(-(2**31), 2**31, (3, columns), generator=draw).to(kind)
    rows[1] = rows[1] // 2**25  # many ties
    found = row_kernels.sort_rows(rows)
    assert found.dtype == kind
    assert np.array_equal(found.numpy(), np.sort(rows.numpy(), axis=1))


def test_which_sort_is_quicker_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    row_kernels._radix_is_quicker.cache_clear()
    first = row_kernels._radix_is_quicker()
    monkeypatch.setattr(row_kernels, "perf_counter", None)  # a second trial would fail
    assert row_kernels._radix_is_quicker() is first
