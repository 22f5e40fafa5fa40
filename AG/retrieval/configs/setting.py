"""A setting is a field of a frozen dataclass that says its meaning, its bounds and its flag."""

import inspect
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

from retrieval.errors import InputError

Value = TypeVar("Value")


@dataclass(frozen=True)
class About:
    """What a field says of itself besides type and default; without a ``text`` it has no flag.

    text:    the help text. What comes after a colon is of one script, what comes before of all.
    unit:    what the value counts, shown after the flag: pixels, metres.
    flag:    the flag's name where it is not the field's.
    names:   further names of the flag: those that the READMEs of the two projects use.
    old:     names that it once had: they work, with a warning.
    group:   the part of the help it stands in, where it is not that of its config.
    least, most, above, choices, is_file: the values that are allowed.
    positional: the value stands on the command line without a flag.
    """

    text: str = ""
    unit: str = ""
    flag: str = ""
    names: tuple[str, ...] = ()
    old: tuple[str, ...] = ()
    group: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    is_file: bool = False
    positional: bool = False

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(self.choices)}"
        if self.is_file and not value.is_file():
            return "no such file"
        if not isinstance(value, (int, float)):
            return None
        if self.least is not None and not value >= self.least:
            return f"at least {self.least} is needed"
        if self.above is not None and not value > self.above:
            return f"must be above {self.above}"
        if self.most is not None and not value <= self.most:
            return f"at most {self.most} is possible"
        return None if math.isfinite(value) else "must be finite"


def setting(default: Value, text: str = "", unit: str = "", **about: Any) -> Value:
    """A field of a `Config`; see `About` for the other arguments."""
    return field(default=default, metadata={"about": About(text, unit, **about)})


def argument(text: str, unit: str = "", **about: Any) -> Any:
    """A field that must be given, as a word of the command line without a flag."""
    return field(metadata={"about": About(text, unit, positional=True, **about)}, kw_only=True)


def abouts(config: "type[Config]") -> dict[str, About]:
    """What each field of ``config`` says of itself."""
    found: dict[str, About] = {}
    for each in fields(config):
        about = each.metadata.get("about", About())
        if get_origin(each.type) is Literal:
            about = replace(about, choices=get_args(each.type))
        owner = next(c for c in config.__mro__ if each.name in inspect.get_annotations(c))
        group = about.group or getattr(owner, "group", "")
        found[each.name] = replace(about, flag=about.flag or each.name, group=group)
    return found


@dataclass(frozen=True)
class Config:
    """Settings that belong together; InputError, naming the flag, for a value out of bounds."""

    group: ClassVar[str] = ""  # the part of a script's help that its flags stand in

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group = group

    @classmethod
    def parts(cls) -> "dict[str, Config]":
        """The configs that this one holds by default."""
        made = {
            each.name: each.default_factory() if callable(each.default_factory) else each.default
            for each in fields(cls)
        }
        return {name: part for name, part in made.items() if isinstance(part, Config)}

    def __post_init__(self) -> None:
        for name, about in abouts(type(self)).items():
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else (value,):
                if value is not None and (fault := about.fault(each)):
                    raise InputError(f"{'--' * bool(about.text)}{about.flag} {each}: {fault}")
