"""The part of the pack that imports ComfyUI: how the method is connected to its host."""
