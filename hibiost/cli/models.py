"""``hibiost models``: the trained models, architectures and encoders that go by a name."""

from __future__ import annotations

import argparse

import hibiost as hb

from ._text import columns

HELP = "list trained models, presets and known encoders: licence, access, whether the weights are here"
DESCRIPTION = """
What hibiost.model.list, presets and encoders list, and whether the weights are in the cache of the hub on this machine;
nothing is looked up online. With a name, the card of that trained model.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model's card is to be printed."""
    parser.add_argument(
        "name", nargs="?", help="a trained model: its name, its folder or hf-hub:ORGANISATION/NAME; prints its card"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print a card, or a table."""
    if arguments.name is not None:
        print(hb.model.card(arguments.name), end="")
        return
    rows = [("name", "kind", "licence", "access", "weights")]
    rows += [(name, "trained", told["licence"], "open", "here") for name, told in hb.model.list().items()]
    rows += [(name, "preset", "-", "-", "trained by hibiost pretrain") for name in hb.model.presets()]
    rows += [_encoder(name) for name in hb.model.encoders()]
    print(columns(rows))
    print(f"\nmodel that is used by default (HIBIOST_MODEL): {hb.settings.model}")


def _encoder(name: str) -> tuple[str, str, str, str, str]:
    from ..model.encoders import cached, entries

    entry = entries()[name]
    here = cached(entry["hub"], entry["file"])
    access = "on request" if entry["gated"] else "open"
    return name, "encoder", entry["licence"], access, "here" if here else f"at huggingface.co/{entry['hub']}"
