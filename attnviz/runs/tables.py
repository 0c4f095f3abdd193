"""The samples' table: Parquet with a bound on its decoded size.

A few kilobytes of Parquet can unfold to gigabytes: long runs of one value, well-compressed pages.
The sizes in the file's metadata are added up first; the table is then read in small batches whose
sizes are counted, since metadata may be wrong. Text is read dictionary-encoded.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnviz.errors import InputError, RunError, unknown_name

if TYPE_CHECKING:
    from pandas import DataFrame

TABLE_LIMIT = 1 << 30
"""Maximum decoded size of a table, in bytes."""

_BATCH = 1 << 12


class _TooLargeError(Exception):
    pass


def read_table(content: bytes, where: str, columns: Sequence[str] | None = None) -> DataFrame:
    """A Parquet file as a table.

    Args:
        content: The file.
        where: Its name, for messages.
        columns: Read only these.

    Raises:
        InputError: there is no such column.
        RunError: it is no whole Parquet file, or unfolds to more than a gigabyte.
    """
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))  # type: ignore[no-untyped-call]  # no types
        known = file.schema_arrow.names
        for column in columns or ():
            if column not in known:
                raise unknown_name("column", column, known)
        return _bounded(content, file, None if columns is None else list(columns))
    except InputError:
        raise
    except _TooLargeError as error:
        raise RunError(
            f"read {where}: expected a table of at most {TABLE_LIMIT} bytes, got {error}"
        ) from error
    except Exception as error:  # both libraries raise many kinds on a crafted file
        raise RunError(f"read {where}: not a whole parquet file") from error


def _bounded(content: bytes, file: Any, columns: list[str] | None) -> DataFrame:
    from pyarrow import Table, array, binary, large_string, string  # type: ignore[attr-defined]
    from pyarrow.parquet import ParquetFile

    if columns == []:
        return file.read(columns=[]).to_pandas()  # type: ignore[no-any-return]
    claimed = _claimed(file.metadata)
    if claimed > TABLE_LIMIT:
        raise _TooLargeError(f"{claimed}")
    text = [
        name
        for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)
        if kind in (string(), large_string(), binary())
    ]
    reader: Any = ParquetFile(io.BytesIO(content), read_dictionary=text)  # type: ignore[no-untyped-call]
    batches, held = [], 0
    for batch in reader.iter_batches(batch_size=_BATCH, columns=columns):
        held += batch.nbytes
        if held > TABLE_LIMIT:
            raise _TooLargeError(f"more than {held}")
        batches.append(batch)
    if not batches:
        return file.read(columns=columns).to_pandas()  # type: ignore[no-any-return]
    frame: DataFrame = Table.from_batches(batches).to_pandas()
    for name in text:
        if name in frame:
            kind = array([], file.schema_arrow.field(name).type).to_pandas().dtype
            frame[name] = frame[name].astype(kind)
    return frame


def _claimed(metadata: Any) -> int:
    """Bytes of the table as its metadata has them: the pages, and eight for each value."""
    pages, values, rows = 0, 0, int(metadata.num_rows)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
            pages += int(chunk.total_uncompressed_size)
            values += int(chunk.num_values)
    return max(pages, 8 * values, 8 * rows)
