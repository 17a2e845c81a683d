"""GMT files: a gene set per line, ``name TAB description TAB gene TAB gene ...``."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

from ..errors import DataError
from ..settings import logger

GZIP = b"\x1f\x8b"


def read_gmt(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Genes of each set of a GMT file, plain or gzipped; a line without genes is left out and told.

    Raises
    ------
    DataError
        The file cannot be read, is no GMT file, or a line of it is malformed; the line is named.
    """
    path = Path(path).expanduser()
    sets: dict[str, tuple[str, ...]] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        name, *rest = (field.strip() for field in line.split("\t"))
        where = f"{path}, line {number}"
        if len(rest) < 2:
            raise DataError(f"{where}: {1 + len(rest)} field(s); expected name TAB description TAB genes, with TABs.")
        if not name:
            raise DataError(f"{where}: the first field is empty; expected the name of the set.")
        if name in line_of:
            raise DataError(f"{where}: set {name!r} is already in line {line_of[name]}; give each its own name.")
        line_of[name] = number
        sets[name] = tuple(gene for gene in rest[1:] if gene)
    return _filled(sets, path)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(GZIP):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"could not read the gene sets of {path}: {error}; expected a GMT file.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; expected a GMT file, plain or gzipped.") from error
    if "\0" in text:
        raise DataError(f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: binary; expected a GMT file.")
    if text.lstrip().startswith("<"):
        raise DataError(
            f"{path} is a web page, not a GMT file: it starts with {text.strip()[:40]!r}; download it anew."
        )
    return text


def _filled(sets: dict[str, tuple[str, ...]], path: Path) -> dict[str, tuple[str, ...]]:
    filled = {name: genes for name, genes in sets.items() if genes}
    if not filled:
        raise DataError(f"{path} holds no gene sets; expected a line each: name TAB description TAB genes.")
    if empty := [name for name in sets if name not in filled]:
        logger.warning("%s: left out %d set(s) without genes, such as %r.", path.name, len(empty), empty[0])
    return filled
