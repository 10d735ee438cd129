"""Codecs by the line that names them in a recipe."""

from collections.abc import Iterable
from dataclasses import fields
from typing import get_type_hints

from csg_core.codecs.base import Codec
from csg_core.codecs.blockwise import Uniform
from csg_core.codecs.ecsq import Ecsq
from csg_core.codecs.grouped import Grouped
from csg_core.codecs.lossless import Float32Lossless
from csg_core.codecs.plain import Float16, Float32, Nothing
from csg_core.codecs.sparse import Ternary, TopK
from csg_core.entries import GROUPS, Group

CODECS: dict[str, type[Codec]] = {
    kind.name: kind
    for kind in (Float32, Float32Lossless, Float16, Uniform, Ternary, TopK, Ecsq, Nothing)
}


def codec_named(line: str) -> Codec:
    """The codec of a line such as ``uniform:bits=4,rotate=true; norms=fp16``.

    Raises:
        ValueError: naming what is unknown in the line.
    """
    first, *more = (part.strip() for part in line.split(";"))
    others: list[tuple[Group, Codec]] = []
    for part in more:
        name, equals, rest = part.partition("=")
        group = next((group for group in GROUPS if group == name.strip()), None)
        if group is None or not equals:
            known = _list(GROUPS)
            raise ValueError(f"codec {line!r}: {part!r} is no group=codec; groups are {known}")
        if group in dict(others):
            raise ValueError(f"codec {line!r}: {group} has two codecs; give one")
        others.append((group, _one(rest, line)))
    default = _one(first, line)
    return Grouped(default, tuple(others)) if others else default


def _one(text: str, line: str) -> Codec:
    name, _, rest = text.strip().partition(":")
    kind = CODECS.get(name.strip())
    if kind is None:
        raise ValueError(f"codec {line!r}: {name.strip()!r} is unknown; use one of {_list(CODECS)}")
    settings = {}
    for setting in filter(None, (part.strip() for part in rest.split(","))):
        key, _, value = (part.strip() for part in setting.partition("="))
        known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        if key not in known:
            takes = _list(known) if known else "no settings"
            raise ValueError(f"codec {line!r}: {setting!r} is unknown; {name} takes {takes}")
        if key in settings:
            raise ValueError(f"codec {line!r}: {key} is set twice")
        settings[key] = _value(value, get_type_hints(kind)[key], f"codec {line!r}: {setting}")
    try:
        return kind(**settings)
    except ValueError as error:
        raise ValueError(f"codec {line!r}: {error}") from error


def _value(text: str, kind: type, where: str) -> bool | int | float | str:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{where}: give true or false")
        return text == "true"
    try:
        return int(text) if kind is int else float(text)
    except ValueError as error:
        wanted = "whole number, as 4" if kind is int else "number, as 0.5"
        raise ValueError(f"{where}: give a {wanted}") from error


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
