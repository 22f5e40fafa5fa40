"""Flags: the fields of small frozen configs become flags, and come back as configs.

What a setting means, its default, bounds and names stand on the config's field and nowhere else.
Hyphens and underscores in flags mean the same: CosPlace writes `--dataset_folder`, cirtorch
`--test-datasets`. Only `Asked` looks at what argparse returns.
"""

import argparse
import ast
import dataclasses
import functools
import logging
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from retrieval.configs.setting import About, Config, abouts

Settings = TypeVar("Settings", bound=Config)

log = logging.getLogger(__name__)

VERSION = "0.1.0"  # as in pyproject.toml

# The parts of a script's help, in this order; a part without flags is not shown.
GROUPS = (
    "Data",
    "Values to try",
    "Photos",
    "Network",
    "Local features",
    "Visual words",
    "Matching",
    "Verification",
    "Re-ranking",
    "Query expansion",
    "Classes",
    "Augmentation",
    "Losses",
    "Tuples",
    "Training",
    "Results",
    "Run",
)
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "FOLDER"}
_FLAG = re.compile(r"^--([\w-]+)(?==|$)")


class Asked:
    """What a command line asks for, as configs."""

    def __init__(self, values: Mapping[str, Any], bases: Mapping[type[Config], Config]) -> None:
        self._values, self._bases = values, bases

    def get(self, flag: str) -> Any:
        """The value of a flag, or None where it is not written."""
        return self._values.get(flag)

    def config(self, config: type[Settings], **values: Any) -> Settings:
        """The config that the flags say; ``values`` set further fields (InputError if refused)."""
        base = self._bases.get(config)
        if base is not None:
            return self.fill(typing.cast(Settings, base), **values)
        parts = {name: self.fill(part) for name, part in config.parts().items()}
        return config(**{**parts, **self.given(config), **values})

    def fill(self, base: Settings, **values: Any) -> Settings:
        """``base`` with what the flags say, in it and in the configs that it holds."""
        parts = {
            name: self.fill(part) for name, part in vars(base).items() if isinstance(part, Config)
        }
        return dataclasses.replace(base, **{**parts, **self.given(type(base)), **values})

    def given(self, config: type[Config]) -> dict[str, Any]:
        """The fields of ``config`` that the command line sets, without the defaults."""
        written = {name: self._values.get(about.flag) for name, about in _flagged(config).items()}
        return {name: value for name, value in written.items() if value is not None}


class Parser(argparse.ArgumentParser):
    """Reads a command line into configs; takes no abbreviated flags.

    description: a script's docstring; what follows a line "Examples:" ends the help.
    """

    def __init__(self, description: str | None) -> None:
        text, _, examples = (description or "").partition("\nExamples:\n")
        script = getattr(sys.modules["__main__"], "__spec__", None)
        super().__init__(
            prog=f"python3 -m {script.name}" if script else f"python3 {sys.argv[0]}",
            description=text,
            epilog="Hyphens and underscores in flags mean the same."
            + f"\n\nexamples:\n{examples.rstrip()}" * bool(examples),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--version", action="version", version=f"delg-delf {VERSION}")
        self._groups = {title: self.add_argument_group(title) for title in GROUPS}
        self._bases: dict[type[Config], Config] = {}
        self._names: dict[str, tuple[str, bool]] = {}  # further name: flag, whether to warn

    def add(
        self,
        base: Config | type[Config],
        *,
        only: Sequence[str] | None = None,
        but: Sequence[str] = (),
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Add a flag for each field that has a help text, of ``base`` and of the configs in it.

        ``only`` and ``but`` say of which fields. ``texts`` say what a field means to this script
        where that is more than its own help text says. A bool becomes a switch (``--no_field``
        where it is True by default), a tuple takes several values, a Literal has choices. A field
        that two configs share has one flag.
        """
        config = base if isinstance(base, type) else type(base)
        if not isinstance(base, type):
            self._bases[config] = base
        kinds = typing.get_type_hints(config)
        for name, about in _flagged(config).items():
            if name in but or (only is not None and name not in only):
                continue
            about = dataclasses.replace(about, text=(texts or {}).get(name, about.text))
            self._add_flag(about, _without_none(kinds[name]), getattr(base, name, None))
        parts = config.parts() if isinstance(base, type) else vars(base)
        for name, part in parts.items():
            if isinstance(part, Config) and name not in but:
                self.add(part, but=but, texts=texts)

    def _add_flag(self, about: About, kind: Any, default: Any) -> None:
        self.rename(about.flag, names=about.names, old=about.old)
        switch = f"--no_{about.flag}" if kind is bool and default else f"--{about.flag}"
        options = _options(about, kind, default)
        if about.positional:
            self.add_argument(about.flag, **options)
        elif switch not in self._option_string_actions:
            options |= {"dest": about.flag, "default": argparse.SUPPRESS}
            self._groups[about.group].add_argument(switch, **options)

    def group(self, title: str) -> argparse._ArgumentGroup:
        """One of the `GROUPS`, to add flags to that are no config's fields."""
        return self._groups[title]

    def rename(self, flag: str, *, names: Sequence[str] = (), old: Sequence[str] = ()) -> None:
        """Take other names for ``flag``; the ``old`` ones with a warning."""
        self._names |= dict.fromkeys(names, (flag, False)) | dict.fromkeys(old, (flag, True))

    def has(self, name: str) -> bool:
        """Whether there is such a flag."""
        return f"--{name}" in self._option_string_actions

    def read(self, argv: Sequence[str] | None) -> Asked:
        """Parse the command line; argparse itself reports unknown flags, with exit status 2."""
        named = [
            str(action.metavar or action.dest) + " ..." * (action.nargs == "+")
            for action in self._get_positional_actions()
        ]
        self.usage = " ".join(["%(prog)s", *named, "[--FLAG ...]"])  # the help lists the flags
        words = sys.argv[1:] if argv is None else argv
        values = vars(self.parse_args([_FLAG.sub(self._own_name, word) for word in words]))
        return Asked({name: _flat(value) for name, value in values.items()}, self._bases)

    def _own_name(self, word: re.Match[str]) -> str:
        """``--tree_height`` of ``--tree-height``, ``--backbone`` of ``--arch``."""
        name = word[1].replace("-", "_")
        if self.has(name) or name not in self._names:
            return f"--{name}"
        flag, is_old = self._names[name]
        if is_old:
            _warn_once(name, flag)
        return f"--{flag}"


@functools.cache
def _warn_once(old: str, new: str) -> None:
    log.warning("--%s is now called --%s", old, new)


def _flagged(config: type[Config]) -> dict[str, About]:
    return {name: about for name, about in abouts(config).items() if about.text}


def _options(about: About, kind: Any, default: Any) -> dict[str, Any]:
    """The arguments of `add_argument`. A flag that is not written leaves no value."""
    text = about.text + _default_in_words(default)
    options: dict[str, Any] = {"help": text.replace(") (default: ", "; default: ")}
    if kind is bool:
        return options | {"action": "store_false" if default else "store_true"}
    if typing.get_origin(kind) is typing.Literal:
        return options | {"choices": typing.get_args(kind)}
    if kind == tuple[str, ...]:
        return options | {"type": names, "metavar": "NAMES"}
    if typing.get_origin(kind) is tuple:
        part = typing.get_args(kind)[0]
        reader, metavar = scales if part is float else part, about.unit or _METAVARS.get(part, "N")
        return options | {"nargs": "+", "type": reader, "metavar": metavar}
    return options | {"type": kind, "metavar": about.unit or _METAVARS.get(kind)}


def _default_in_words(default: Any) -> str:
    if default in ("", None, ()) or isinstance(default, bool):
        return ""
    values = default if isinstance(default, tuple) else (default,)
    words = [f"{each:.4g}" if isinstance(each, float) else str(each) for each in values]
    return f" (default: {(',' if isinstance(values[0], str) else ' ').join(words)})"


def _flat(value: Any) -> Any:
    """The values of a flag that takes several, as one tuple."""
    if not isinstance(value, list):
        return value
    return tuple(each for part in value for each in (part if isinstance(part, tuple) else (part,)))


def _without_none(kind: Any) -> Any:
    """``float`` for ``float | None``: the flag's absence says None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def read(options: type[Settings], description: str | None, argv: Sequence[str] | None) -> Settings:
    """Read a command line of which each flag is a field of ``options``."""
    parser = Parser(description)
    parser.add(options)
    return parser.read(argv).config(options)


def names(text: str) -> tuple[str, ...]:
    """The names between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def scales(text: str) -> tuple[float, ...]:
    """Numbers between commas, in brackets or not: cirtorch writes ``[1, 1/2**(1/2), 1/2]``.

    Raises argparse's error for anything else.
    """
    try:
        tree = ast.parse(f"[{text.strip().removeprefix('[').removesuffix(']')}]", mode="eval").body
        values = tuple(_number(each) for each in tree.elts) if isinstance(tree, ast.List) else ()
    except (SyntaxError, ArithmeticError, ValueError, TypeError):
        values = ()
    if not values or not all(0 < value < 100 for value in values):
        expected = "expected numbers above 0 and below 100, as in '1 0.5' or '[1, 1/2**(1/2), 1/2]'"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}")
    return values


def _number(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _number(left) / _number(right)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return float(_number(left) ** _number(right))
    raise ValueError("only numbers, / and ** are understood")
