"""What a trained model is exported to; light, so that `millrace export --help` needs no PyTorch."""

from typing import NamedTuple


class ExportFormat(NamedTuple):
    """A kind of file."""

    suffix: str
    about: str


FORMATS = {
    "program": ExportFormat(".pt2", "`torch.export`, runs with PyTorch alone"),
    "aoti": ExportFormat(".pt2", "AOTInductor, compiled for this machine; takes a C++ compiler"),
    "safetensors": ExportFormat(
        ".safetensors", "weights, with definition and normalisation as JSON"
    ),
}
"""By name; the first one with a suffix is what it stands for."""
