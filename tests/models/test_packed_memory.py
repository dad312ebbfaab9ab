"""A quantised file on its way into the native layout takes hardly more memory than the layout itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import decodery

SOURCE = """
import math, mmap, sys
from pathlib import Path
import torch
from decodery.models.forward import Forward
from decodery.models.layout import LayerLayout, Layout, Rotation
from decodery.models.native.network import NativeNetwork
from decodery.models.weight_source import Blocks

rotation = Rotation(tuple(10000.0 ** (-i / 32) for i in range(32)), 1.0)
layout = Layout(16384, 2048, 1024, 4096, 16, 16, 64, "silu", 1e-5, 0.125, 1.0, False, False, False, (), True, "model.",
                (rotation,), (LayerLayout(None, 0),) * 6)

class Mapped:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.places, at = {}, 0
        for name, shape in layout.shapes():
            if len(shape) > 1:
                self.places[name] = at, shape
                at += math.prod(shape) // 32 * 18
    def names(self):
        return [name for name, _ in layout.shapes()]
    def tensor(self, name, dtype):
        return torch.ones(dict(layout.shapes())[name], dtype=dtype)
    def blocks(self, name):
        at, (outputs, inputs) = self.places[name]
        taken = torch.frombuffer(self.map, dtype=torch.uint8, count=outputs * inputs // 32 * 18, offset=at)
        return Blocks(2, taken.view(outputs, -1), inputs)
    def release(self, name):
        at, shape = self.places[name]
        start = at - at % mmap.PAGESIZE
        self.map.madvise(mmap.MADV_DONTNEED, start, at + math.prod(shape) // 32 * 18 - start)

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

source = Mapped(sys.argv[1])
before = peak()
network = NativeNetwork(layout, source, "mapped", precision=sys.argv[2])
logits = network.run([Forward(network.new_sequence(), [1, 2, 3])])[0].logits
assert network.path == sys.argv[2] and bool(logits.isfinite().all())
print(peak() - before)
"""
BYTES = (16384 * 1024 + 6 * (4 * 1024 * 1024 + 3 * 1024 * 4096)) // 32 * 18
"""Of its matrices in Q4_0."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is asked of Linux")
@pytest.mark.usefixtures("native_decoder")
@pytest.mark.parametrize("precision", ["packed", "integer"])
def test_peak_memory_of_a_quantised_file(precision: str, tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (BYTES // 18, 18), dtype=np.uint8)
    blocks[:, :2] = np.array([0.01], dtype=np.float16).view(np.uint8)
    path = tmp_path / "blocks"
    blocks.tofile(path)
    here = os.environ | {"PYTHONPATH": str(Path(decodery.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SOURCE, str(path), precision], capture_output=True, text=True, env=here
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.3 * path.stat().st_size, int(done.stdout) / path.stat().st_size
