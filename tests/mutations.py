"Ways in which a file is damaged, for tests that read thousands of damaged files in a process of its own."
import os
from pathlib import Path

import numpy as np

# `PYTHONPATH` of such a process
TESTS = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])


class Mutations:
    "Functions from bytes to damaged bytes, drawn from one stream of random numbers."
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def flip(self, b):
        "Turn up to eight bits around."
        b = bytearray(b)
        for _ in range(self.rng.integers(1, 9)):
            b[self.rng.integers(len(b))] ^= 1 << int(self.rng.integers(8))
        return bytes(b)

    def cut(self, b):
        "Leave out the end."
        return b[:self.rng.integers(len(b))]

    def junk(self, b):
        "Replace a piece by noise of another length."
        i = int(self.rng.integers(len(b)))
        return b[:i]+self.rng.bytes(int(self.rng.integers(1, 64)))+b[i+int(self.rng.integers(64)):]

    def head(self, b):
        "Replace the first bytes, which say what a file is."
        return self.rng.bytes(int(self.rng.integers(1, 8)))+b[8:]
