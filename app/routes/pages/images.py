"""Pictures of data sets: single images for walls, and the sheet of samples. Their addresses name their content."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse

from app.errors import NotFound
from app.store.images import SplitName, image_png
from app.web.deps import State
from app.web.templating import IMMUTABLE
from trainer.datasets import catalogue
from trainer.i18n import _

router = APIRouter()


@router.get("/images/{dataset}/{fingerprint}/{split}/{index}.png")
def image(
    request: Request,
    state: State,
    dataset: str,
    fingerprint: str,
    split: SplitName,
    index: Annotated[int, Path(ge=0)],
    permutation: Annotated[int | None, Query(ge=0, le=2**32 - 1)] = None,
) -> Response:
    """One image; the same for ever, as the fingerprint of the split is part of the address."""
    etag = f'"{fingerprint[:16]}-{index}-{"" if permutation is None else permutation}"'
    headers = {"ETag": etag, "Cache-Control": IMMUTABLE}
    if request.headers.get("If-None-Match") == etag:
        return Response(status_code=304, headers=headers)
    png = image_png(state.settings.home, dataset, split, fingerprint, index, permutation)
    return Response(png, media_type="image/png", headers=headers)


@router.get("/datasets/{name}/samples.png")
def samples(state: State, name: str, v: str = "") -> Response:
    """Four training images of each of the first ten classes; ``v`` begins the fingerprint of the training split."""
    try:
        fingerprint = catalogue.get_dataset(state.settings.home, name).train_fingerprint
    except catalogue.UnknownDataset as error:
        raise NotFound(str(error)) from None
    path = catalogue.samples_path(state.settings.home, name)
    if fingerprint is None or not path.is_file():
        raise NotFound(_("There are no samples of {name} until its images are available.").format(name=name))
    current = v and fingerprint.startswith(v)
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": IMMUTABLE if current else "no-cache"})
