"""The PyTorch engine and its processes. Knows nothing of HTTP, SQL or pages; never imports ``app``."""
