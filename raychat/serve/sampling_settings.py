"""The sampling parameters that a chat can change by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from raychat.engine.sampling import SamplingParams


class Setting(NamedTuple):
    """A sampling parameter as users know it."""

    field: str  # of SamplingParams
    parse: Callable[[str], float]
    optional: bool  # it may be none
    help: str


SETTINGS = {
    "temperature": Setting("temperature", float, False, "0 = always the most likely token"),
    "top_k": Setting("top_k", int, True, "only among the k most likely tokens; none = all"),
    "top_p": Setting("top_p", float, True, "only among the most likely tokens that hold this probability; none = all"),
    "min_p": Setting("min_p", float, True, "only tokens this many times as likely as the most likely one; none = all"),
    "max_tokens": Setting("max_new_tokens", int, False, "of one answer"),
    "seed": Setting("seed", int, True, "the same seed gives the same answers; none = new ones every time"),
}


def changed(params: SamplingParams, name: str, value: float | None) -> SamplingParams:
    """Return the parameters with one setting changed; top_k 0 or -1 means all.

    Raises:
        ValueError: there is no such setting, or the value is out of its range.
    """
    setting = _setting(name)
    if value is None and not setting.optional:
        raise ValueError(f"{name} is none; expected a number")
    if name == "top_k" and value in (0, -1):
        value = None
    try:
        new: dict[str, Any] = {setting.field: value}
        return replace(params, **new)
    except ValueError as error:
        raise ValueError(str(error).replace(setting.field, name)) from None


def typed(name: str, text: str) -> float | None:
    """Return the value of a setting from what a user typed: a number or `none`.

    Raises:
        ValueError: there is no such setting, or the text is neither.
    """
    setting = _setting(name)
    if text.lower() == "none":
        return None
    try:
        return setting.parse(text)
    except ValueError:
        expected = "a whole number" if setting.parse is int else "a number"
        raise ValueError(f"{name} is {text!r}; expected {expected}{' or none' * setting.optional}") from None


def _setting(name: str) -> Setting:
    if name not in SETTINGS:
        raise ValueError(f"no setting {name!r}; expected one of {', '.join(SETTINGS)}")
    return SETTINGS[name]
