"""Pictures: framing, masks, light, where the subject is, and the sheets to look at. Torch and Pillow alone."""
