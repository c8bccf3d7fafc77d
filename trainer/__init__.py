"""The PyTorch engine and its processes. Knows nothing of HTTP, SQL or pages; never imports ``app``."""

import os

# A thread that waits for another spins so many times (about 0.1 ms) before it sleeps. The default of GNU's OpenMP, which
# reads this when torch loads it, spins for milliseconds: with one more busy process on 2 cores, cnn then trained 47 times
# slower on two threads (320 in place of 15,100 images/s), and 14,900 with this; docs/lab/training-on-a-cpu.md.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
