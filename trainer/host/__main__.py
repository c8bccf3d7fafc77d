"""``python -m trainer.host`` starts a trainer host."""

import contextlib
import os
import sys

from trainer.host.loop import main

status = main()
with contextlib.suppress(OSError):  # a full disk
    sys.stdout.flush()
    sys.stderr.flush()
os._exit(status)  # skip the interpreter's cleanup: with PyTorch loaded it takes seconds, and nothing is left to save
