"""DreamTuner for ComfyUI: one picture of a subject, and that subject in new pictures."""

from .nodes import DreamTunerExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> DreamTunerExtension:
    return DreamTunerExtension()
