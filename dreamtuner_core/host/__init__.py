"""The rooms that import comfy: how the method meets its host."""
