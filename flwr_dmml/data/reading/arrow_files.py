"""Rows in Arrow's formats: what a column holds, cell by cell, and ``manifest.parquet``."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...base.libraries import needed
from ..samples import DataError, Kind
from .cells import is_missing
from .manifest import PARQUET, Cell, Column, Description, Manifest, roles_of
from .problems import reason
from .tables import Floats, as_table


def arrow() -> Any:
    """Return the module ``pyarrow``.

    Raises
    ------
    LibraryError
        It is missing or does not load.
    """
    with needed("pyarrow"):
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    return pyarrow


class ArrowCells:
    """The cells of a column of Arrow, each made when it is asked for.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Of contents of files, or of lists of numbers, or of lists of such lists.
    """

    def __init__(self, column: Any) -> None:
        self._column = column
        self._are_lists = _is_list(column.type)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: int) -> Cell:
        """Return the cell of a row; DataError if its numbers cannot be a table."""
        scalar = self._column[row]
        if not scalar.is_valid:
            return None
        if self._are_lists:
            return _numbers(scalar.values)
        found = scalar.as_py()
        content = found["bytes"] if isinstance(found, dict) else found
        if content is None:
            path: str | None = found.get("path")
            return path
        return BytesIO(content)


def column_of(name: str, column: Any, kind: Kind | None) -> Column:
    """Return a column of Arrow as a modality.

    Parameters
    ----------
    name : str
        Of the column.
    column : pyarrow.ChunkedArray
        Of paths, contents of files, or (lists of) lists of numbers.
    kind : str, optional
        What it is declared to be.

    Raises
    ------
    DataError
        If it holds anything else, or contents of files that are not said to be images or audio.
    """
    pa = arrow()
    column = _plain(column)
    form = column.type
    if pa.types.is_null(form) or pa.types.is_string(form) or pa.types.is_large_string(form):
        cells = column.to_pylist()
        return Column([None if cell is None or is_missing(cell) else cell for cell in cells], kind)
    if is_content(form):
        if kind not in ("image", "audio"):
            raise DataError(
                f"column '{name}' holds contents of files; say in dataset.toml whether they are "
                "'image' or 'audio'"
            )
        return Column(ArrowCells(column), kind)
    if is_numbers(form):
        flat = not _is_list(form.value_type)
        return Column(ArrowCells(column), kind or ("vector" if flat else None))
    raise DataError(
        f"column '{name}' holds {form}; expected paths of files or lists of numbers (if it is no "
        "modality, let dataset.toml ignore it)"
    )


def checked(table: Any) -> Any:
    """Return a table of Arrow that is sound inside: a damaged one may end the process.

    Raises
    ------
    pyarrow.ArrowInvalid
        It is not.
    """
    table.validate(full=True)
    return table


def is_content(form: Any) -> bool:
    """Whether values of a type are contents of files: binary, or a struct of bytes and path."""
    types, form = arrow().types, _plain_type(form)
    if types.is_struct(form):
        return {field.name for field in form} == {"bytes", "path"}
    return bool(types.is_binary(form) or types.is_large_binary(form))


def is_numbers(form: Any) -> bool:
    """Whether values of a type are lists of numbers, or lists of such lists."""
    types, form = arrow().types, _plain_type(form)
    if not _is_list(form):
        return False
    inner = form.value_type
    inner = inner.value_type if _is_list(inner) else inner
    return bool(types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner))


def text(column: Any) -> list[str]:
    """Return the values of a column as text, "" for none."""
    return ["" if value is None else str(value).strip() for value in _plain(column).to_pylist()]


def parquet_columns(root: Path) -> list[str]:
    """Return the names of the columns of ``manifest.parquet``.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    pa = arrow()
    try:
        names: list[str] = pa.parquet.read_schema(root / PARQUET).names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{PARQUET}: {reason(error)}") from error
    return names


def read_parquet_manifest(root: Path, about: Description) -> Manifest:
    """Read ``manifest.parquet``.

    Raises
    ------
    DataError
        If it cannot be read, lacks columns, or has some that cannot be used.
    """
    pa, names = arrow(), parquet_columns(root)
    modalities = about.modalities_among(names)
    used = [name for name in names if name not in about.ignore]
    try:
        table = checked(pa.parquet.ParquetFile(root / PARQUET).read(columns=used))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{PARQUET}: {reason(error)}") from error
    roles = {name: text(table[name]) for name in table.column_names if name not in modalities}
    return Manifest(
        about,
        where=[f"row {row}" for row in range(1, len(table) + 1)],
        columns=columns_of(table, modalities, about),
        **roles_of(about, roles),
    )


def columns_of(table: Any, modalities: Sequence[str], about: Description) -> dict[str, Column]:
    """Return the modalities of a table of Arrow; see :func:`column_of`."""
    return {
        m: replace(
            column_of(m, table[m], about.modalities.get(m)), channels=about.channels.get(m, ())
        )
        for m in modalities
    }


def _is_list(form: Any) -> bool:
    types = arrow().types
    return bool(types.is_list(form) or types.is_large_list(form) or types.is_fixed_size_list(form))


def _plain_type(form: Any) -> Any:
    return form.storage_type if isinstance(form, arrow().BaseExtensionType) else form


def _plain(column: Any) -> Any:
    """Return a column without extension types and dictionaries."""
    pa = arrow()
    if isinstance(column.type, pa.BaseExtensionType):
        chunks = [chunk.storage for chunk in column.chunks]
        return pa.chunked_array(chunks, type=column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _numbers(values: Any) -> Floats:
    """Return an array of numbers, or of lists of numbers, as a table; none may be missing."""
    shape = [len(values)]
    if _is_list(values.type):
        found = arrow().compute.list_value_length(values).unique().to_pylist()
        lengths = {length or 0 for length in found}
        if len(lengths) > 1:
            raise DataError(f"its steps have from {min(lengths)} to {max(lengths)} numbers")
        shape += [*lengths]
        values = values.flatten()
    return as_table(np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape))
