"""What can be chosen: models, presets, devices, and what a config would build."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from app.errors import Refused, Unavailable
from app.runs import executors
from app.runs.executors import ExecutorUnavailable
from app.runs.plan import plan_run
from app.schemas import Description, DeviceOut, ModelOut
from app.state import Runoff
from app.web.deps import State
from trainer.config import MODELS, FieldProblem, RunConfig
from trainer.datasets import catalogue
from trainer.i18n import _
from trainer.presets import PRESETS, Preset

router = APIRouter(tags=["choices"])


@router.get("/models")
def list_models() -> list[ModelOut]:
    """The nets that can be trained."""
    return [
        ModelOut(
            name=name,
            title=_(model.title),
            summary=_(model.summary),
            default_width=model.default_width,
            width_unit=_(model.width_unit),
            smallest_image=model.smallest_image,
        )
        for name, model in MODELS.items()
    ]


@router.get("/presets")
def list_presets() -> list[Preset]:
    """Presets: named starting points, one for each experiment of the teaching notebook."""
    return [p.model_copy(update={"title": _(p.title), "summary": _(p.summary)}) for p in PRESETS.values()]


@router.get("/devices")
def list_devices(state: State) -> list[DeviceOut]:
    """What this machine can train on."""
    try:
        return [DeviceOut(**device) for device in state.executor.devices()]
    except ExecutorUnavailable as error:
        raise Unavailable(str(error)) from None


@router.post("/describe")
def describe(state: State, body: Annotated[dict[str, Any], Body()]) -> Description:
    """Layers, shapes, parameters and multiply-adds of a config. Takes the same body as ``POST /runs``, but starts nothing."""
    plan = plan_run(state.settings.home, body)
    return Description(**_describe(state, plan.runs[0].config), warnings=plan.warnings)


def _describe(state: Runoff, config: RunConfig) -> dict[str, Any]:
    """What the config builds, by the trainer host. Raises ``Refused`` without a shape, ``Unavailable`` without a host."""
    dataset = catalogue.get_dataset(state.settings.home, config.dataset)
    if dataset.image_shape is None or not dataset.class_names:
        message = _("{name} has no known image size yet. Prepare it first.").format(name=config.dataset)
        raise Refused.fields([FieldProblem(field="dataset", message=message)])
    try:
        return state.executor.describe(config.model_dump(), list(dataset.image_shape), len(dataset.class_names))
    except executors.Refused as error:
        raise Refused(str(error)) from None
    except ExecutorUnavailable as error:
        raise Unavailable(str(error)) from None
