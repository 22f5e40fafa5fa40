"""rerank.toml: the settings of a re-ranking, as tune.py writes them and eval.py reads them.

checksum = "…"      # of the rest; take this line out when you edit the file
rerank = true       # false: no re-ranking, whatever follows here or in flags
top_k = 20
floor = 12.0        # what is left out is as by default
[match]
rule = "mutual"
[verify]
model = "affine"
"""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.errors import InputError
from retrieval.files import sealed, unsealed, write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SWITCH = "rerank"
_TABLES: "dict[str, type[DataclassInstance]]" = {"match": MatchConfig, "verify": VerifyConfig}


def write_rerank(path: Path, config: RerankConfig | None, comment: Sequence[str] = ()) -> None:
    """Write the settings, or for None that there is to be no re-ranking, under comment lines."""
    content: dict[str, Any] = {_SWITCH: config is not None}
    if config is not None:
        content |= _without_none(dataclasses.asdict(config))
    lines = [f"# {line}".rstrip() for text in comment for line in text.splitlines() or [""]]
    write_atomically(path, "\n".join([*lines, tomli_w.dumps(sealed(content))]))


def read_rerank(path: Path) -> RerankConfig | None:
    """The settings of such a file; None where it says that there is to be no re-ranking.

    What people write or change has the line ``checksum = "none"``: a file without any may be the
    rest of a damaged one. Raises InputError, naming file and key, for a file that is not there or
    no TOML, for keys that are no settings, and for values that these refuse.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--rerank_config {path}: no such file (tune.py writes one)") from None
    except (OSError, ValueError) as error:  # of encoding and of TOML too
        raise InputError(f"--rerank_config {path} cannot be read: {error}") from error
    if not content:
        raise InputError(f"--rerank_config {path} says nothing: tune.py writes such a file")
    if content.get("checksum") == "none":
        del content["checksum"]
    else:
        try:
            content = unsealed(content, must_be=True)
        except ValueError:
            raise InputError(
                f"--rerank_config {path} is damaged, or was written or edited by hand: then give "
                'it the line checksum = "none"'
            ) from None
    switch = content.pop(_SWITCH, True)
    if not isinstance(switch, bool):
        raise InputError(f"{path}: {_SWITCH} = {switch!r}: expected true or false")
    tables = {
        name: _config(path, config, content.pop(name, {}), f"{name}.")
        for name, config in _TABLES.items()
    }
    config = _config(path, RerankConfig, content, "", tables)
    return config if switch else None


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null; every field that may be None is so by default."""
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def _config(
    path: Path,
    config: "type[DataclassInstance]",
    values: Any,
    prefix: str,
    tables: Mapping[str, Any] | None = None,
) -> Any:
    """The config of a table of the file."""
    if not isinstance(values, dict):
        raise InputError(f"{path}: {prefix[:-1]} = {values!r}: expected a table, [{prefix[:-1]}]")
    kinds = typing.get_type_hints(config)
    known = [field.name for field in dataclasses.fields(config) if field.name not in _TABLES]
    for name in values:
        if name not in known:
            names = ", ".join(known)
            raise InputError(f"{path}: {prefix}{name} is no setting; those there: {names}")
    checked = {name: _value(path, prefix + name, values[name], kinds[name]) for name in values}
    try:
        return config(**checked, **(tables or {}))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _value(path: Path, name: str, value: Any, kind: Any) -> Any:
    """The value in the type of its field; an integer will do for a float."""
    options = [part for part in typing.get_args(kind) if isinstance(part, type)]
    wanted = kind if isinstance(kind, type) else (options or [str])[0]  # str: of a Literal
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        words = {int: "a whole number", float: "a number", str: "a word in quotes"}
        raise InputError(f"{path}: {name} = {value!r}: expected {words[wanted]}")
    return value
