"""Export a trained model: a program with its normalisation inside, a compiled package, or the weights.

What is written is run on an example and compared with the checkpoint; if it differs, nothing is left.
"""

import argparse
import sys
from pathlib import Path

from millrace.command_line import make_parser
from millrace.errors import ExitCode, exits_with_code
from millrace.evaluation.export_formats import FORMATS
from millrace.evaluation.predict import add_model_options
from millrace.systems.registry import load_plugins

OPTIONS = {
    "steps": "calls of the network by the sampler of a downscaler (default: 20)",
    "seed": "of the noise of the example of a downscaler",
}
"""Options of programs that the command has; which of them a system takes, it says itself."""


@exits_with_code
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = vars(parser().parse_args(sys.argv[1:] if arguments is None else arguments))
    load_plugins(options.pop("plugins"))
    # Imports PyTorch and xarray, which --help does without.
    from millrace.evaluation.loaded import load

    checkpoint, samples, device = (options.pop(key) for key in ("checkpoint", "samples", "device"))
    given = {key: options.pop(key) for key in OPTIONS}
    model = load(checkpoint, samples=samples, device=device)
    chosen = {key: value for key, value in given.items() if value is not None}
    output: Path = options["output"]
    said = model.export(**options, **chosen)
    print(f"{output}, {output.with_suffix('.json')}: as the checkpoint to {said['difference']:.1e}")
    for role in ("inputs", "outputs"):
        for value in said[role]:
            sizes = zip(value["axes"], value["shape"], strict=True)
            shape = ", ".join(axis if size is None else f"{axis} {size}" for axis, size in sizes)
            print(f"  {role.rstrip('s'):<6} {value['name']} [{shape}]: {value['about']}")
    if "seconds" in said:
        own, made = (said["seconds"][key] for key in ("checkpoint", "exported"))
        print(f"a call takes {made:.3g} s, of the checkpoint {own:.3g} s ({own / made:.2f} x)")
    for note in said["notes"]:
        print(note)
    return ExitCode.OK


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = make_parser(
        "export",
        __doc__,
        "--checkpoint epoch_12.ckpt --output model.pt2",
        "--checkpoint epoch_12.ckpt --output model.pt2 --to aoti",
        "--checkpoint epoch_12.ckpt --output gino.pt2 --source /data/site --example site.safetensors",
        "--checkpoint epoch_12.ckpt --output weights.safetensors",
    )
    add_model_options(made)
    add = made.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help=".pt2 or .safetensors")
    formats = "; ".join(f"{name}: {one.about}" for name, one in FORMATS.items())
    add("--to", choices=[*FORMATS], help=f"{formats}. Default: by the suffix, a program for .pt2")
    add("--source", type=Path, metavar="PATH", help="raw files that it is tried on, as for "
        "prediction; default: made up")  # fmt: skip
    add("--format", dest="raw", metavar="NAME", help="of the raw files; default: by their names")
    add("--example", type=Path, metavar="FILE.safetensors", help="write what goes in and comes out")
    for name, text in OPTIONS.items():
        add(f"--{name}", type=int, metavar="N", help=text)
    return made
