"""A recipe as text: every key with its value and what it means."""

import inspect
import re
from dataclasses import asdict
from typing import Any, get_args

import tomli_w

from csg_core import NETWORKS, ModelSpec
from csg_core.spec import OF_GENERATOR
from federation.recipe import Recipe

_COMMENT_AT = 36  # column of comments, where the value is shorter


def commented(recipe: Recipe) -> str:
    """TOML of the recipe, to begin a file of one's own with; keys without a value are comments."""
    lines = []
    for section in Recipe.model_fields:
        held = getattr(recipe, section)
        values = asdict(held) if isinstance(held, ModelSpec) else held.model_dump()
        meanings = _of_model() if isinstance(held, ModelSpec) else _of_section(held)
        lines.append(f"[{section}]")
        for name, value in values.items():
            text = f"{name} = " if value is None else f"{name} = {_toml(value)}"
            if value is None or (isinstance(held, ModelSpec) and _passed_over(held, name)):
                text = f"# {text}"
            lines.append(f"{text:<{_COMMENT_AT}}  # {meanings[name]}")
        lines.append("")
    return "\n".join(lines)


def _passed_over(model: ModelSpec, name: str) -> bool:
    return model.parametrization != "csg" and name in OF_GENERATOR


def _toml(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {_toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return tomli_w.dumps({"value": value}).strip().removeprefix("value = ")


def _of_section(section: Any) -> dict[str, str]:
    """What the keys of a section mean, and which values those have that take a few."""
    found = {}
    for name, field in type(section).model_fields.items():
        choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
        meaning = field.description or ""
        found[name] = f"{meaning} ({', '.join(choices)})" if choices else meaning
    return found


def _of_model() -> dict[str, str]:
    """The same of a model, from the docstring of its description."""
    text = (inspect.getdoc(ModelSpec) or "").partition("Attributes:\n")[2]
    found = {}
    for names, meaning in re.findall(r"^ {4}([a-z_, ]+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
        for name in names.split(", "):
            found[name] = " ".join(meaning.replace("``", "").split()).rstrip(".")
    return {**found, "name": ", ".join(NETWORKS)}
