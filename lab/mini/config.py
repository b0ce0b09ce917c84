"""Presets of the mini base: what is drawn, how large the parts are, how long they train."""
from dataclasses import dataclass

# caption word -> name in unicode-emoji-json (the name of the concept in the archive)
CPU_CONCEPTS = {
    "butterfly": "butterfly", "fish": "tropical fish", "mushroom": "mushroom", "car": "automobile",
    "tulip": "tulip", "rocket": "rocket", "cat": "cat face", "dog": "dog face", "cactus": "cactus",
    "sailboat": "sailboat", "house": "house", "teapot": "teapot", "owl": "owl", "snail": "snail",
    "octopus": "octopus", "backpack": "backpack", "shirt": "t-shirt", "dress": "dress",
    "penguin": "penguin", "flower": "hibiscus",
}


@dataclass(frozen=True)
class Preset:
    """One size of the mini base. Widths in channels, sides in pixels, counts in pictures or steps."""

    concepts: dict[str, str] | None  # caption word -> emoji name; None takes every concept of artwork.GROUPS
    side: int
    pictures: int
    # autoencoder
    widths: tuple[int, int, int, int]  # finest resolution first
    crop: int
    autoencoder_steps: int
    autoencoder_batch: int
    # U-Net and text encoder
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    num_heads: int
    context_dim: int
    text_layers: int
    steps: int
    batch: int

    def __post_init__(self) -> None:
        for name, width in (("model_channels", self.model_channels), ("context_dim", self.context_dim)):
            if width % 32 or width % self.num_heads:
                raise ValueError(f"{name} must divide by 32 and by num_heads={self.num_heads}, but is {width}.")
        if self.side % 8 or self.crop % 8 or self.crop > self.side:
            raise ValueError(f"side and crop must divide by 8 and crop must fit, but are {self.side} and {self.crop}.")


PRESETS = {
    "cpu": Preset(concepts=CPU_CONCEPTS, side=128, pictures=24_000,
                  widths=(16, 32, 48, 64), crop=64, autoencoder_steps=1600, autoencoder_batch=16,
                  model_channels=96, channel_mult=(1, 2), num_res_blocks=1, num_heads=4,
                  context_dim=192, text_layers=2, steps=8000, batch=16),
    "full": Preset(concepts=None, side=256, pictures=200_000,
                   widths=(64, 64, 64, 64), crop=128, autoencoder_steps=12_000, autoencoder_batch=64,
                   model_channels=160, channel_mult=(1, 2, 3), num_res_blocks=1, num_heads=8,
                   context_dim=320, text_layers=4, steps=60_000, batch=256),
}
