"""Data sets that Hugging Face's ``datasets`` has saved to disk, read as Arrow files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from ...base.formats import first_problem, parse_json
from ..samples import DataError, Kind
from .arrow_files import arrow, checked, columns_of, is_content, is_numbers, text
from .manifest import SPLITS, Description, Manifest, roles_of
from .problems import reason

DICT, STATE, INFORMATION = "dataset_dict.json", "state.json", "dataset_info.json"
"""The files beside the data: the splits, the names of the files, the types of the columns."""

_KINDS: dict[str, Kind] = {"Image": "image", "Audio": "audio"}


_Text = Annotated[str, BeforeValidator(lambda value: str(value) if value is not None else value)]


class _Splits(BaseModel):
    """What ``dataset_dict.json`` holds that matters here."""

    splits: list[str] = []


class _File(BaseModel):
    filename: str


class _State(BaseModel):
    """What ``state.json`` holds that matters here."""

    data_files: list[_File] = Field([], alias="_data_files")
    indices: Any = Field(None, alias="_indices_data_files")


class _Feature(BaseModel):
    """The type of a column, and the names of classes where it has any."""

    type: str = Field("", alias="_type")
    names: list[_Text] | None = None


class _Information(BaseModel):
    """What ``dataset_info.json`` holds that matters here; a list of features has no type."""

    features: dict[str, _Feature | list[Any]] | None = None


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a saved data set that can be used.

    Parameters
    ----------
    names : tuple of str
        Of images, sound, lists of numbers and whatever the description names, and of the split.
    about : Description
        Completed: the kinds of images and sound, the classes, and the label if it is the only
        column of classes.
    classes : tuple of (tuple of str)
        What the numbers of the label stand for in each folder; empty where it holds something else.
    """

    names: tuple[str, ...]
    about: Description
    classes: tuple[tuple[str, ...], ...]


def hf_files(root: Path) -> list[Path]:
    """Return the files of a folder that was written by ``save_to_disk``."""
    return [path for folder in _folders(root) for path in sorted(folder.glob("*.*"))]


def hf_columns(root: Path, about: Description) -> Columns:
    """Return which columns there are, and what their types tell.

    Raises
    ------
    DataError
        If the folder cannot be read.
    """
    folders = _folders(root)
    infos = [_read(folder / INFORMATION, _Information).features or {} for folder in folders]
    features = infos[0]
    schema = _tables(folders[0])[0].schema
    roles = about.columns
    classes = [name for name in schema.names if _type(features, name) == "ClassLabel"]
    if roles.label not in schema.names and len(classes) == 1:
        roles = roles.model_copy(update={"label": classes[0]})
    others = {roles.label, roles.split, roles.id, roles.node, *about.ignore}
    used = [
        form.name
        for form in schema
        if form.name in {*others, *about.modalities}
        or is_content(form.type)
        or is_numbers(form.type)
    ]
    if (root / DICT).exists():
        used = [*(name for name in used if name != roles.split), roles.split]
    found = {name: _KINDS[t] for name in used if (t := _type(features, name)) in _KINDS}
    kinds = {name: kind for name, kind in found.items() if name not in others}
    names = tuple(_class_names(info.get(roles.label)) for info in infos)
    if any(names) and not all(names):
        bare = folders[names.index(())].name
        raise DataError(
            f"{bare}/{INFORMATION}: column '{roles.label}' has no names of classes, as it has in "
            "the other split; give both the same ClassLabel"
        )
    changes = {
        "columns": roles,
        "modalities": {**kinds, **about.modalities},
        "classes": about.classes or names[0],  # a class of test rows alone is refused
    }
    return Columns(tuple(used), about.model_copy(update=changes), names)


def read_hf_disk(root: Path, about: Description) -> Manifest:
    """Read what ``save_to_disk`` wrote; splits other than "train" and "test" are left out.

    Raises
    ------
    DataError
        If it cannot be read, or lacks splits or columns.
    """
    pa, columns = arrow(), hf_columns(root, about)
    about, roles = columns.about, columns.about.columns
    modalities = about.modalities_among(columns.names)
    tables, splits, where, classes = [], [], [], list[tuple[str, ...]]()
    for folder, names in zip(_folders(root), columns.classes, strict=True):
        parts = _tables(folder)
        tables += [part.replace_schema_metadata(None) for part in parts]
        count = sum(len(part) for part in parts)
        splits += [folder.name] * count
        classes += [names] * count
        where += [f"{folder.name}[{row}]" for row in range(count)]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(f"the splits have different columns: {error}") from error
    others = {name: text(table[name]) for name in table.column_names if name not in modalities}
    if (root / DICT).exists():
        others[roles.split] = splits
    if any(columns.classes):
        numbers = others[roles.label]
        others[roles.label] = [_class_name(*pair) for pair in zip(numbers, classes, strict=True)]
    return Manifest(
        about,
        where=where,
        columns=columns_of(table, modalities, about),
        **roles_of(about, others),
    )


def _folders(root: Path) -> list[Path]:
    """Return the folders of the splits, or the only folder of a data set without."""
    if not (root / DICT).exists():
        return [root]
    splits = _read(root / DICT, _Splits).splits
    if lacking := [name for name in SPLITS if name not in splits]:
        raise DataError(
            f"{DICT}: there is no split {' or '.join(map(repr, lacking))}, but "
            f"{', '.join(map(repr, splits))}; 'train' and 'test' are needed"
        )
    return [root / name for name in SPLITS]


def _tables(folder: Path) -> list[Any]:
    """Return the tables of a split, mapped into memory; at least one."""
    pa, state = arrow(), _read(folder / STATE, _State)
    names = [Path(file.filename).name for file in state.data_files]
    if not names or state.indices:
        raise DataError(f"{folder.name}/{STATE}: it names no data, or only some of their rows")
    try:
        return [
            checked(pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all())
            for name in names
        ]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder.name}: {reason(error)}") from error


_Model = TypeVar("_Model", bound=BaseModel)


def _read(path: Path, model: type[_Model]) -> _Model:
    where = f"{path.parent.name}/{path.name}"
    try:
        return model.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DataError(f"{where}: {first_problem(error)}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: {reason(error)}") from error


def _type(features: Mapping[str, _Feature | list[Any]], name: str) -> str:
    feature = features.get(name)
    return feature.type if isinstance(feature, _Feature) else ""


def _class_names(feature: _Feature | list[Any] | None) -> tuple[str, ...]:
    """Return the names of a column's classes, none if it has something else."""
    if not isinstance(feature, _Feature) or feature.type != "ClassLabel":
        return ()
    return tuple(feature.names or ())


def _class_name(number: str, classes: tuple[str, ...]) -> str:
    """Return the name of a class, "" where there is none (-1)."""
    known = number.isdecimal() and len(number) < 20 and int(number) < len(classes)
    return classes[int(number)] if known else "" if number in ("", "-1") else number
