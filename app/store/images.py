"""Images of a data set: their URLs on a page, and their pixels as PNG.

Images are read from the pixel cache. Pillow and numpy are imported on first use.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.errors import NotFound
from app.store.tables import Run
from trainer.datasets import catalogue
from trainer.i18n import _

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SplitName = Literal["train", "test"]
_TILE, _DETAIL = 56, 200  # approximate side in CSS pixels


# Addresses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """The URLs and the size of the images of a split.

    ``zoom`` scales an image to a tile of about 56 pixels, ``zoom_detail`` to about 200 pixels.
    """

    dataset: str
    fingerprint: str
    split: SplitName
    height: int
    width: int
    permutation: int | None = None  # seed of the pixel permutation of the run; None without one

    @property
    def zoom(self) -> int:
        return max(1, round(_TILE / max(self.height, self.width)))

    @property
    def zoom_detail(self) -> int:
        return max(1, round(_DETAIL / max(self.height, self.width)))

    def src(self, index: int) -> str:
        return f"/images/{self.dataset}/{self.fingerprint}/{self.split}/{index}.png"

    def permuted_src(self, index: int) -> str:
        return f"{self.src(index)}?permutation={self.permutation}"


def images_of(home: Path, run: Run, split: SplitName, fingerprint: str | None = None) -> Images | None:
    """The images that the run used; None if the data set is not on this machine or has changed since.

    ``fingerprint`` is needed for training images, because the index has only that of the test images.
    """
    try:
        dataset = catalogue.get_dataset(home, run.dataset)
    except catalogue.UnknownDataset:
        return None
    known = dataset.test_fingerprint if split == "test" else dataset.train_fingerprint
    wanted = run.test_fingerprint if split == "test" else fingerprint
    if not known or known != wanted or not dataset.image_shape:
        return None
    permutation = run.config.get("permutation_seed") if run.config.get("permute_pixels") else None
    _channels, height, width = dataset.image_shape
    return Images(run.dataset, known, split, height, width, permutation)


# Pixels --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _permutation(height: int, width: int, seed: int) -> NDArray[np.int64]:
    return catalogue.pixel_permutation(height, width, seed)


def image_png(
    home: Path, name: str, split: SplitName, fingerprint: str, index: int, permutation_seed: int | None = None
) -> bytes:
    """Image ``index`` of a split as PNG, grey or RGB, with its pixels permuted if a seed is given.

    Raises ``NotFound`` if the data set is not on this machine, has changed since, or has fewer images.
    """
    try:
        dataset = catalogue.get_dataset(home, name)
        if fingerprint != (dataset.train_fingerprint if split == "train" else dataset.test_fingerprint):
            raise FileNotFoundError(name)
        pixels = catalogue.read_image(home, name, split, index)
    except IndexError as error:
        message = _("There is no image {index}: the {split} split of {name} has {n}, counted from 0.")
        n = f"{error.args[0]:,}"
        raise NotFound(message.format(index=index, split=split, name=name, n=n)) from None
    except (catalogue.UnknownDataset, catalogue.DatasetDamaged, FileNotFoundError):
        raise NotFound(
            _(
                "The images of {name} that this run was tested on are not available. Import or download them again."
            ).format(name=name[:64])
        ) from None
    if permutation_seed is not None:
        channels, height, width = pixels.shape
        order = _permutation(height, width, permutation_seed)
        pixels = pixels.reshape(channels, -1)[:, order].reshape(channels, height, width)
    return _encode(pixels)


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image uint8 [C, H, W] as PNG; C is 1 or 3."""
    import numpy as np
    from PIL import Image

    flat = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(flat)).save(file, "PNG", compress_level=6)
    return file.getvalue()
