"""Settings as dataclass fields that know what is allowed: `TrainConfig`, a search's options, the
benchmark's.

A field made by `setting` carries its choices or bounds, `check_settings` checks them where the
object is made, and `dcgan.cli.add_flags` turns the fields into flags. The string under a field is
its help.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable, Collection
from typing import Any


def setting(
    default: Any,
    *,
    choices: Collection[Any] | None = None,
    least: float | None = None,
    most: float | None = None,
    why: str = "",
    metavar: str | None = None,
) -> Any:
    """A dataclass field with what is allowed.

    Args:
        choices: a registry (dict) is read anew each time, so that what is registered later counts.
        most: goes with `least`.
        why: what a bound is for, where that is not plain.
        metavar: what `--help` calls its value.
    """
    about = {"choices": choices, "least": least, "most": most, "why": why, "metavar": metavar}
    return dataclasses.field(default=default, metadata=about)


def flag_name(field: str) -> str:
    """The flag of a field on a command line."""
    return "--" + field.replace("_", "-")


def check_settings(settings: Any, spell: Callable[[str], str] = str) -> None:
    """Checks type, choices and bounds of every field of a dataclass's instance.

    Args:
        spell: how messages name a field, such as `flag_name`.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), spell(field.name)
        kind, optional = plain_type(field.type)
        if value is None and optional:
            continue
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            got = f"{name} is {value!r}, a {type(value).__name__}"
            raise ValueError(f"{got}; expected {kind.__name__}")
        choices, least = field.metadata.get("choices"), field.metadata.get("least")
        if choices is not None:
            check_choice(name, value, choices)
        if least is not None:
            check_bounds(name, value, least, field.metadata["most"], field.metadata["why"])


def plain_type(kind: Any) -> tuple[Any, bool]:
    """The type of a field without None, and whether None is allowed."""
    if isinstance(kind, types.UnionType):
        (plain,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
        return plain, True
    return typing.get_origin(kind) or kind, False


def check_choice(name: str, value: object, allowed: Collection[Any]) -> None:
    """Refuses what is none of the allowed values by a ValueError that names them."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def check_bounds(
    name: str, value: Any, least: float, most: float | None = None, why: str = ""
) -> None:
    """Refuses a number outside its bounds by a ValueError that names them, and what they are
    for."""
    if value >= least and (most is None or value <= most):
        return
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    raise ValueError(f"{name} is {value}; allowed is {bounds}" + (f": {why}" if why else ""))


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, by field name: the text that `--help` shows."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return docs
