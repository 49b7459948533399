"""``python -m flwr_dmml.doctor NAME``: use one library; how it went is JSON on the last line."""

import os
import sys

from .probes import run

run(sys.argv[1])
os._exit(0)  # a library's threads must not keep it
