"""Runs a program that ends when its parent does, also when that is killed: `python -m benchmarks.mortal PROGRAM ARGUMENT ...`.

For peers, which know nothing of parents; the kernel keeps the wish across exec.
"""

import os
import signal
import sys

from erllama_host.process import die_with_parent

if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    os.execvp(sys.argv[1], sys.argv[1:])
