"""Presets of the mini base: its pictures, the sizes of its parts, and how long they train."""

from dataclasses import dataclass

SQUARE, WIDE = "", "wide_"  # the shapes of pictures, by the prefix of their files
LATENT_CHANNELS = 16  # with the 4 of Stable Diffusion, letters and small marks are lost


@dataclass(frozen=True)
class Preset:
    """One size of the mini base. Widths in channels, sides in pixels, counts in pictures or steps."""

    side: int
    pictures: int
    wide_pictures: int
    # autoencoder
    widths: tuple[int, int, int, int]  # finest resolution first
    crop: int
    autoencoder_steps: int
    autoencoder_batch: int
    decoder_steps: int  # of the decoder alone, after that
    # U-Net and text encoder
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    num_head_channels: int
    context_dim: int
    text_layers: int
    steps: int
    controlnet_steps: int
    batch: int
    repeated: float = 0.2  # share of the square pictures that show an individual twice
    compiled: bool = True  # takes minutes at the start; the tests turn it off

    def __post_init__(self) -> None:
        if self.model_channels % 32 or self.model_channels % self.num_head_channels:
            raise ValueError(
                f"model_channels must divide by 32 and by num_head_channels={self.num_head_channels}, "
                f"but is {self.model_channels}."
            )
        if self.side % 8 or self.crop % 8 or self.crop > self.side:
            raise ValueError(f"side and crop must divide by 8 and crop must fit, but are {self.side} and {self.crop}.")

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures of each shape, without shapes that have none."""
        return {shape: n for shape, n in ((SQUARE, self.pictures), (WIDE, self.wide_pictures)) if n}


PRESETS = {
    "tiny": Preset(  # for the tests: every part in seconds; its pictures are useless
        side=64,
        pictures=64,
        wide_pictures=16,
        widths=(4, 8, 8, 8),
        crop=32,
        autoencoder_steps=20,
        autoencoder_batch=4,
        decoder_steps=20,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        num_head_channels=32,
        context_dim=32,
        text_layers=1,
        steps=40,
        controlnet_steps=4,
        batch=4,
        compiled=False,
    ),
    "cpu": Preset(
        side=128,
        pictures=24_000,
        wide_pictures=30_000,
        widths=(16, 32, 48, 64),
        crop=64,
        autoencoder_steps=9_500,
        autoencoder_batch=8,
        decoder_steps=20_000,
        model_channels=128,
        channel_mult=(1, 1),
        num_res_blocks=1,
        num_head_channels=32,
        context_dim=128,
        text_layers=2,
        steps=9_000,
        controlnet_steps=600,
        batch=32,
    ),
    "full": Preset(  # for half an hour of one H100; its numbers are estimates, and it was never run
        side=256,
        pictures=30_000,
        wide_pictures=30_000,
        widths=(64, 64, 64, 64),
        crop=128,
        autoencoder_steps=3_000,
        autoencoder_batch=64,
        decoder_steps=2_000,
        model_channels=96,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        num_head_channels=32,
        context_dim=256,
        text_layers=4,
        steps=4_500,
        controlnet_steps=500,
        batch=256,
    ),
}
