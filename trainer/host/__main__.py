"""``python -m trainer.host`` starts a trainer host."""

import os
import sys

from trainer.host.loop import main

status = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # at once: taking down the libraries' state takes seconds, and nothing is left to save
