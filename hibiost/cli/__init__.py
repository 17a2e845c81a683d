"""The ``hibiost`` command; what is heavy is imported inside the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import HibiostError
from .bench import add_arguments


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(prog="hibiost", description="Image + gene models for spatial transcriptomics.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train on sections C2-C5 of her2st, test on C6; figures, table, .h5ad and model",
        description=(
            "The main job on a real breast-tumour section: keyword-gene sentences, a small model trained on sections "
            "C2-C5 of the her2st data, embeddings, clusters and predicted expression of section C6, beside floors. "
            "Where the data cannot be reached, it runs on synthetic tissue and says so."
        ),
    )
    demo.add_argument("--out", type=Path, default=Path("hibiost-demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of every random step (%(default)s)")
    demo.add_argument("--epochs", type=int, help="training epochs (default: the preset's)")
    demo.add_argument("--image-encoder", default="ResNet-10", help="model preset (%(default)s)")
    demo.add_argument("--synthetic", action="store_true", help="use synthetic tissue even where the data are there")
    pretrain = commands.add_parser(
        "pretrain",
        help="train a model as a configuration file says",
        description=(
            "What hibiost.tl.pretrain does, from a TOML file: data and run, and as wanted select, validation, "
            "image_encoder, mpp, pathways, layer, library_key, device, seed and the tables [recipe] and [engine]. The "
            "same command goes on where a run was stopped. On several GPUs or machines: torchrun --nproc-per-node N -m "
            "hibiost pretrain config.toml, or srun with a task for each GPU."
        ),
    )
    pretrain.add_argument("config", type=Path, help="the configuration file")
    pretrain.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="instead of what the file says, such as recipe.epochs=20; may be given again",
    )
    bench = commands.add_parser(
        "bench",
        help="compare models by the paper's protocols: tables, figures, floors",
        description=(
            "What hibiost.benchmark.run does: zero-shot clustering, expression prediction, few-shot prediction and "
            "retrieval by cross-validation, beside chance, training mean, colour and random features. The same command "
            "goes on where it was stopped."
        ),
    )
    add_arguments(bench)
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
        _run(arguments)
    except HibiostError as error:
        print(f"hibiost: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "pretrain":
        from .pretrain import Configuration, pretrain

        pretrain(Configuration.read(arguments.config, arguments.overrides))
        return
    if arguments.command == "bench":
        from .bench import bench

        bench(arguments)
        return
    from .demo import demo

    demo(
        arguments.out,
        seed=arguments.seed,
        epochs=arguments.epochs,
        image_encoder=arguments.image_encoder,
        synthetic=arguments.synthetic,
    )
