"""A model merge takes only the weights of its second model, and so drops a subject applied to it: it warns."""

from __future__ import annotations

import weakref
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP

from .progress import warn
from .settings import KEY

WEIGHTS = "diffusion_model."  # the prefix with which a merge asks for the weights of its second model
LOST = (
    "DreamTuner: this merge takes only the weights of its second model, so the subject on it is left out. Merge "
    "first, and apply the subject to the result."
)


def warn_when_merged(model: ModelPatcher) -> None:
    """Warn when a merge node asks this model, or a clone of it, for its weights."""
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, lambda _, clone: _listen(clone))
    _listen(model)


def _listen(model: ModelPatcher) -> None:
    """Wrap get_key_patches of this object; the host's class is not changed."""
    this = weakref.ref(model)  # a reference cycle would keep the model until the next garbage collection

    def get_key_patches(filter_prefix: str | None = None) -> Any:
        model = this()
        assert model is not None
        settings = model.get_attachment(KEY)
        if filter_prefix == WEIGHTS and settings is not None and (settings.subjects or settings.encoders):
            warn(LOST)
        return type(model).get_key_patches(model, filter_prefix)

    model.get_key_patches = get_key_patches
