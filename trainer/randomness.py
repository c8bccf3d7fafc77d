"""Stateless randomness: every stream is derived from (seed, purpose, epoch), so a resumed run draws what it would have drawn.

No generator is kept between epochs and nothing is stored in a checkpoint.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit seed for one purpose in one epoch: the first bytes of SHA-256 over the three."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A fresh CPU generator for that stream. The CPU's numbers are the same on every device."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, epoch))
