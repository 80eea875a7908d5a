"""Settings that are one of a few names, checked for callers in Python as the command line checks them."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lamp_jax.errors import LampError

_SETTINGS = ("lamp_jax.config", "lamp_jax.settings")


def check_choices(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """LampError, with the choices, for an argument or a field of settings that is none of those of its annotation."""
    for name, allowed in function.__annotations__.items():
        if name in given:
            _check(name, given[name], allowed)


def _check(name: str, value: Any, allowed: Any) -> None:
    if get_origin(allowed) is Literal and value not in get_args(allowed):
        raise LampError(f"{name}={value!r}: choose one of {', '.join(map(str, get_args(allowed)))}")
    if is_dataclass(value) and type(value).__module__ in _SETTINGS:
        hints = get_type_hints(type(value))
        for field in fields(value):
            _check(field.name, getattr(value, field.name), hints[field.name])
