"""A comparison of two runs counted anew, by formulas written out here: no line of Runoff is imported, only numpy.

``python -I recompute.py URL A B [FOLDER_A FOLDER_B]`` asks the server at URL for every answer of the runs A and B, and
reads the files of the newest epoch in both run folders where these are given. Prints one JSON object:
``{"answers": RESULT, "files": RESULT or null}``, difference = accuracy of A minus accuracy of B.
"""

from __future__ import annotations

import json
import math
import sys
import urllib.request
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

PAGE = 1000


def from_server(url: str, run: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and predicted classes [N], in the order of the images, page by page."""
    rows: list[tuple[int, int, int]] = []
    while True:
        address = f"{url}/api/v1/runs/{run}/predictions?sort=index&limit={PAGE}&offset={len(rows)}"
        with urllib.request.urlopen(address) as answer:
            page = json.load(answer)
        rows += [(item["index"], item["label"], item["predicted"]) for item in page["items"]]
        if len(rows) >= page["total"] or not page["items"]:
            break
    table = np.array(rows, np.int64)
    assert (table[:, 0] == np.arange(len(table))).all(), "an image is missing or twice"
    return table[:, 1], table[:, 2]


def from_files(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same from a run folder. A safetensors file is a length, a JSON header of that length, and the bytes."""
    newest = max((folder / "predictions").glob("epoch-*.safetensors"))
    raw = newest.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + length])["predicted"]
    assert entry["dtype"] == "U16", entry
    begin, end = entry["data_offsets"]
    predicted = np.frombuffer(raw[8 + length + begin : 8 + length + end], "<u2").reshape(entry["shape"])
    return np.load(folder / "predictions" / "labels.npy", allow_pickle=False).astype(np.int64), predicted.astype(
        np.int64
    )


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of b against c: twice the smaller tail of fair coin tosses, in whole numbers."""
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return float(min(Fraction(1), 2 * Fraction(tail, 2 ** (b + c))))


def tango(b: int, c: int, n: int, z: float) -> list[float]:
    """Tango (1998): the differences at which the score statistic is z and -z, by bisection with 60 digits."""
    with localcontext() as context:
        context.prec = 60

        def statistic(d: Decimal) -> Decimal:
            first, second = Decimal(2 * n), Decimal(-b - c) + (2 * n - b + c) * d
            third = -c * d * (1 - d)
            q = ((second * second - 4 * first * third).sqrt() - second) / (2 * first)
            variance = n * (2 * q + d * (1 - d))
            return (b - c - n * d) / variance.sqrt() if variance > 0 else Decimal(0)

        def root(target: Decimal, low: Decimal, high: Decimal) -> float:
            for _step in range(190):
                middle = (low + high) / 2
                low, high = (middle, high) if statistic(middle) > target else (low, middle)
            return float((low + high) / 2)

        estimate, quantile = Decimal(b - c) / n, Decimal(z)
        return [root(quantile, Decimal(-1), estimate), root(-quantile, estimate, Decimal(1))]


def compared(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """All numbers of the pair, at the level of a single one (95 %)."""
    assert (a[0] == b[0]).all(), "other labels"
    right_a, right_b = a[0] == a[1], b[0] == b[1]
    n = len(right_a)
    both, neither = int((right_a & right_b).sum()), int((~right_a & ~right_b).sum())
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "num_images": n,
        "both_correct": both,
        "only_a_correct": only_a,
        "only_b_correct": only_b,
        "both_wrong": neither,
        "a_correct": both + only_a,
        "b_correct": both + only_b,
        "difference": (only_a - only_b) / n,
        "same_wrong_answer": int(((a[1] == b[1]) & ~right_a).sum()),
        "interval": tango(only_a, only_b, n, NormalDist().inv_cdf(0.975)),
        "p_value": mcnemar(only_a, only_b),
        "identical": bool((a[1] == b[1]).all()),
    }


def main() -> None:
    url, run_a, run_b, *folders = sys.argv[1:]
    answers = compared(from_server(url, run_a), from_server(url, run_b))
    files = compared(*(from_files(Path(folder)) for folder in folders)) if folders else None
    sys.stdout.write(json.dumps({"answers": answers, "files": files}) + "\n")


if __name__ == "__main__":
    main()
