"""Scaled fp16, and rows read by their bytes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load, save_file

from attnviz.errors import InputError, RunError
from attnviz.runs.storage import LocalStore
from attnviz.runs.tensors import open_tensors, restored, scaled, to_bytes

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def twin(array: np.ndarray, axes: int) -> np.ndarray:
    """Each map by itself: divide by its maximum, round to fp16, multiply."""
    out = np.empty(array.shape, dtype=np.float32)
    for place in np.ndindex(array.shape[: array.ndim - axes]):
        one = array[place].astype(np.float32)
        top = np.float32(max((abs(v) for v in one.ravel().tolist()), default=0.0)) or np.float32(1)
        with np.errstate(over="ignore"):  # of numpy 1.26's filled vectors
            out[place] = (one / top).astype(np.float16).astype(np.float32) * top
    return out


@given(arrays(np.float32, (3, 2, 4, 5), elements=finite))
def test_a_map_comes_back_as_the_twin_says(array: np.ndarray) -> None:
    parts = scaled(array, 2)
    assert parts["values"].dtype == np.float16
    assert parts["scale"].dtype == np.float32
    assert parts["scale"].shape == (3, 2)
    np.testing.assert_array_equal(restored(**parts), twin(array, 2))


@given(arrays(np.float32, (4, 3, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_the_error_stays_within_the_bound_of_the_docstring(array: np.ndarray) -> None:
    back = restored(**scaled(array, 2)).astype(np.float64)
    exact = array.astype(np.float64)
    top = np.abs(exact).max(axis=(1, 2), keepdims=True)
    # the scale itself, and the product with it, are rounded to fp32 once each
    bound = np.maximum(2.0**-11 * np.abs(exact), 2.0**-25 * top) * (1 + 2.0**-10)
    assert (np.abs(back - exact) <= bound + 2.0**-148).all()


def test_attention_rows_of_a_large_grid_keep_their_precision() -> None:
    rows = np.random.default_rng(0).random((2, 4, 576, 576), dtype=np.float32)
    rows /= rows.sum(-1, keepdims=True)
    error = np.abs(restored(**scaled(rows, 2)) - rows)
    assert error.max() <= 2.0**-11 * rows.max()
    assert (error / rows)[rows > 1e-4 * rows.max()].max() <= 2.0**-11 * 1.001


def test_the_largest_value_zero_nan_and_infinities_come_back_as_they_were() -> None:
    maps = np.array([[[0.3, 0, np.nan, -np.inf, np.inf]], [[0, 0, 0, 0, 0]]], dtype=np.float32)
    back = restored(**scaled(maps, 2))
    np.testing.assert_array_equal(back, maps)


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 4, 4), (2, 0, 0)])
def test_no_maps_are_maps_too(shape: tuple[int, ...], tmp_path: Path) -> None:
    content = to_bytes(scaled(np.zeros(shape), 2))
    (tmp_path / "a.safetensors").write_bytes(content)
    file = open_tensors(LocalStore(tmp_path), "a.safetensors")
    assert restored(file.rows("values"), file.rows("scale")).shape == shape


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, bool, np.int64])
def test_any_real_type_is_taken(dtype: type) -> None:
    maps = np.eye(3).astype(dtype)[None]
    np.testing.assert_array_equal(restored(**scaled(maps, 2)), maps.astype(np.float32))


@given(data=st.data())
def test_chosen_rows_are_the_rows_of_the_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    array = np.arange(7 * 3 * 2, dtype=np.float32).reshape(7, 3, 2)
    (folder / "a.safetensors").write_bytes(to_bytes({"x": array, "y": array[:0]}))
    chosen = data.draw(st.lists(st.integers(0, 6)))
    file = open_tensors(LocalStore(folder), "a.safetensors")
    np.testing.assert_array_equal(file.rows("x", chosen), array[chosen])
    assert file.rows("y").shape == (0, 3, 2)


def test_what_the_library_wrote_is_read_here_and_the_other_way_round(tmp_path: Path) -> None:
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "flags": np.array([True, False]),
        "long": np.arange(3, dtype=np.int64),
        "bytes": np.arange(40_000, dtype=np.uint32),
    }
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"note": "kept"})
    file = open_tensors(LocalStore(tmp_path), "theirs.safetensors")
    for name, array in arrays.items():
        got = file.rows(name)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    for name, array in load(to_bytes(arrays)).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("index", [-1, 7, 10**12])
def test_an_index_out_of_range_says_the_range(tmp_path: Path, index: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(to_bytes({"x": np.zeros((7, 2))}))
    file = open_tensors(LocalStore(tmp_path), "a.safetensors")
    with pytest.raises(InputError, match=r"a.safetensors: expected indices from 0 to 6, got"):
        file.rows("x", [index])


def test_a_header_that_promises_more_than_the_file_has_is_noticed(tmp_path: Path) -> None:
    whole = to_bytes({"x": np.zeros((1000, 1000), dtype=np.uint8)})
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    file = open_tensors(LocalStore(tmp_path), "a.safetensors")
    assert file.rows("x", [3]).shape == (1, 1000)
    with pytest.raises(RunError, match=r"a.safetensors: ends before it should"):
        file.rows("x")


@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_never_do_more_than_raise_a_run_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "a.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"a.safetensors"):
        open_tensors(LocalStore(folder), "a.safetensors").rows("x")


parts = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["F32", "F16"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
    ),
)


@given(header=st.dictionaries(st.sampled_from(["x", "__metadata__"]), parts) | parts)
@example(header=0)
@example(header={"x": {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 16]}})
def test_an_arbitrary_header_never_does_more_than_raise_a_run_error(
    header: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = json.dumps(header).encode()
    folder = tmp_path_factory.mktemp("header")
    content = len(text).to_bytes(8, "little") + text + bytes(16)
    (folder / "a.safetensors").write_bytes(content)
    with suppress(RunError):
        open_tensors(LocalStore(folder), "a.safetensors").rows("x")
