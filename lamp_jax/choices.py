"""Settings that are one of a few names, checked in Python and on config pages as the command line checks them."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lamp_jax.errors import LampError


def check_choices(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """LampError, with the choices, for an argument or a field of settings that is none of those of its annotation."""
    for name, allowed in function.__annotations__.items():
        if name in given:
            _check(name, given[name], allowed)


def check_settings(settings: Any, *, name: str = "") -> None:
    """LampError, with the choices, for a field of a dataclass, also a nested one, that is not one of its choices."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        _check(f"{name}{field.name}", getattr(settings, field.name), hints[field.name])


def _check(name: str, value: Any, allowed: Any) -> None:
    if get_origin(allowed) is Literal and value not in get_args(allowed):
        raise LampError(f"{name}={value!r}: choose one of {', '.join(map(str, get_args(allowed)))}")
    if is_dataclass(value) and type(value).__module__.startswith("lamp_jax."):
        check_settings(value, name=f"{name}.")
