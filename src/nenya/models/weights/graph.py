"""A network as a graph for other programs: ONNX, or the program of torch.export."""

from pathlib import Path
from typing import Any


def write_graph(out: Path, kind: str, options: Any, checkpoint: Any, net: Any) -> None:
    """Write a graph."""
    raise NotImplementedError
