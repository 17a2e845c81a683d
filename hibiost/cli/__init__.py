"""The ``hibiost`` command; what is heavy is imported inside the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import HibiostError
from . import bench, demo, embed, models, predict, pretrain

_COMMANDS = {
    "demo": demo,
    "pretrain": pretrain,
    "embed": embed,
    "predict": predict,
    "bench": bench,
    "models": models,
}
"""Each with ``HELP``, ``DESCRIPTION``, ``add_arguments`` and ``run``."""


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(prog="hibiost", description="Image + gene models for spatial transcriptomics.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in _COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.DESCRIPTION)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Arguments; those of the process where not given.

    Returns
    -------
    The exit status: 0, or 1 with a message on stderr where hibiost refuses.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except HibiostError as error:
        print(f"hibiost: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
