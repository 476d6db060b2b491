"""The counted peak memory of published networks, and what ONNX Runtime holds while it runs them.

    python benchmarks/memory.py [NAME ...]

Without names, every fourth published network. Needs ONNX Runtime 1.31 or later, which reports its memory per node.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy
import onnxruntime

from nasspace import zoo
from nasspace.counting import cost
from nasspace.latency.convert import to_onnx
from nasspace.network import build

LEVEL = onnxruntime.GraphOptimizationLevel
WAYS = {  # column: optimization of the graph, and whether tensors are planned to share buffers (the default)
    "basic, every tensor freed after its last reader": (LEVEL.ORT_ENABLE_BASIC, False),
    "basic": (LEVEL.ORT_ENABLE_BASIC, True),
    "all (the default)": (LEVEL.ORT_ENABLE_ALL, True),
}


def main() -> None:
    """Print one row per network and the medians."""
    names = sys.argv[1:] or zoo.names()[::4]
    print("| network | counted, KB |", " | ".join(WAYS), "| node of the last peak |")
    print("| -- " * (len(WAYS) + 3) + "|")
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    for name in names:
        architecture = zoo.load(name)
        counted = cost(architecture).peak_memory
        with tempfile.TemporaryDirectory() as folder:
            path = to_onnx(build(architecture), architecture.input, Path(folder) / "model.onnx")
            cells, node = [], ""
            for way, (level, reuse) in WAYS.items():
                held, node = peak_held(path, architecture.input, level, reuse)
                ratios[way].append(held / counted)
                cells.append(f"{held / counted:.3f}")
        print(f"| {name} | {math.ceil(counted / 1024):,} |", " | ".join(cells), f"| {node} |", flush=True)
    for way, found in ratios.items():
        near = Counter(abs(ratio - 1) <= 0.05 for ratio in found)[True]
        median, most = statistics.median(found), max(found)
        print(f"\n{way}: median {median:.3f}, {near} of {len(found)} within 5 %, at most {most:.2f}")


def peak_held(path: Path, shape: tuple[int, int, int], level: LEVEL, reuse: bool) -> tuple[int, str]:
    """The most bytes of tensors that ONNX Runtime holds in one run, the image included, and the node it runs then."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = level
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    options.enable_mem_pattern, options.enable_mem_reuse = False, reuse
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": numpy.zeros((1, *shape), numpy.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in sorted(events, key=lambda event: event["ts"]) if event["cat"] == "Node"]
    before = int(nodes[0]["mem_bytes_requested_in_use"]) - int(nodes[0]["mem_requested_in_use_delta"])
    held = [int(node["mem_bytes_requested_in_use"]) - before for node in nodes]
    held[0] += 4 * math.prod(shape)  # the image belongs to the caller, and only the first node reads it
    most = max(range(len(held)), key=held.__getitem__)
    return held[most], nodes[most]["op_name"]


if __name__ == "__main__":
    main()
