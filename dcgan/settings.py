"""Settings as dataclass fields that know what is allowed: `TrainConfig`, a search's options, the
benchmark's.

A field made by `setting` carries its choices or bounds, `check_settings` checks them where the
object is made, and `dcgan.cli.add_flags` turns the fields into flags. The string under a field is
its help.
"""

import ast
import dataclasses
import inspect
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
    metavar: str | None = None,
) -> Any:
    """A dataclass field with what is allowed.

    Args:
        default: its value unless given.
        choices: the allowed values; a registry (dict) is read anew each time, so that what is
            registered later counts.
        least: the smallest allowed number.
        most: the largest allowed number.
        metavar: what `--help` calls its value.
    """
    about = {"choices": choices, "least": least, "most": most, "metavar": metavar}
    return dataclasses.field(default=default, metadata=about)


def flag_name(field: str) -> str:
    """The flag of a field on a command line."""
    return "--" + field.replace("_", "-")


def check_settings(settings: Any, spell: Callable[[str], str] = str) -> None:
    """Checks type, choices and bounds of every field.

    Args:
        settings: an instance of a dataclass, whose fields may be made by `setting`.
        spell: how messages name a field, such as `flag_name`.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), spell(field.name)
        kind, optional = plain_type(field.type)
        if value is None and optional:
            continue
        check_type(name, value, kind)
        if (choices := field.metadata.get("choices")) is not None:
            check_choice(name, value, choices)
        check_bounds(name, value, field.metadata.get("least"), field.metadata.get("most"))


def plain_type(kind: Any) -> tuple[Any, bool]:
    """The type of a field without None, and whether None is allowed."""
    if isinstance(kind, types.UnionType):
        plain = [one for one in typing.get_args(kind) if one is not types.NoneType]
        return plain[0], len(plain) < len(typing.get_args(kind))
    return typing.get_origin(kind) or kind, False


def check_type(name: str, value: object, kind: type) -> None:
    """Refuses a value of another type; an int is a float, too, but a bool is no number."""
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        got = f"{name} is {value!r}, a {type(value).__name__}"
        raise ValueError(f"{got}; expected {kind.__name__}")


def check_choice(name: str, value: object, allowed: Collection[Any]) -> None:
    """Refuses what is none of the allowed values."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def check_bounds(name: str, value: Any, least: float | None, most: float | None = None) -> None:
    """Refuses a number outside its bounds."""
    if (least is None or value >= least) and (most is None or value <= most):
        return
    if least is None:
        bounds = f"at most {most}"
    elif most is None:
        bounds = f"at least {least}"
    else:
        bounds = f"{least} to {most}"
    raise ValueError(f"{name} is {value}; allowed is {bounds}")


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, by field name: the text that `--help` shows."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(text, ast.Expr):
            continue
        if isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs
