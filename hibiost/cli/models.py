"""``hibiost models``: the architectures and encoders that go by a name."""

from __future__ import annotations

import argparse

import hibiost as hb

HELP = "list model presets and known encoders: licence, access, whether the weights are here"
DESCRIPTION = """
What hibiost.model.presets and hibiost.model.encoders list, and whether the weights are in the cache of the hub on this
machine. Nothing is looked up online.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``hibiost models`` has no arguments."""


def run(arguments: argparse.Namespace) -> None:
    """Print a table."""
    rows = [("name", "kind", "licence", "access", "weights")]
    rows += [(name, "preset", "-", "-", "trained by hibiost pretrain") for name in hb.model.presets()]
    rows += [_encoder(name) for name in hb.model.encoders()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nmodel that is used by default (HIBIOST_MODEL): {hb.settings.model or 'none'}")


def _encoder(name: str) -> tuple[str, str, str, str, str]:
    from ..model.encoders import cached, entries

    entry = entries()[name]
    here = cached(entry["hub"], entry["file"])
    access = "on request" if entry["gated"] else "open"
    return name, "encoder", entry["licence"], access, "here" if here else f"at huggingface.co/{entry['hub']}"
