"""Only for the lab: register the mini base with ComfyUI, as a small member of the SD1.x family.

Put (or link) this folder into the host's custom_nodes; the mini base then loads with the stock
CheckpointLoaderSimple. It is not part of the pack: the host has a list of supported model families
(comfy.supported_models.models), and this adds one entry to it. Works on ComfyUI 0.3.52 to 0.3.75.
"""

import torch
from comfy import latent_formats, model_base, sd1_clip, supported_models, supported_models_base

NODE_CLASS_MAPPINGS = {}

CLIP_VOCABULARY = 49408
PREFIX = "cond_stage_model."
TABLE = "transformer.text_model.embeddings.token_embedding.weight"
TOKEN_IDS = PREFIX + "token_ids"


class MiniLatent(latent_formats.LatentFormat):
    latent_channels = 16  # unscaled: lab/mini trains them to unit variance


class MiniBase(supported_models_base.BASE):
    """The `cpu` preset of lab/mini. v-prediction; the text encoder's size is read from the checkpoint."""

    unet_config = {  # distinguishes it from other families, by the sizes in the checkpoint
        "model_channels": 128,
        "context_dim": 128,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    required_keys = {TOKEN_IDS: None}
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    latent_format = MiniLatent
    memory_usage_factor = 1.0

    def inpaint_model(self) -> bool:
        return False  # the host takes more than 4 input channels for an inpainting model

    def model_type(self, state_dict: dict, prefix: str = "") -> model_base.ModelType:
        return model_base.ModelType.V_PREDICTION

    def clip_target(self, state_dict: dict) -> supported_models_base.ClipTarget:
        config = text_config(state_dict)
        return supported_models_base.ClipTarget(tokenizer_class(config["hidden_size"]), text_class(config))

    def process_clip_state_dict(self, state_dict: dict) -> dict:
        """Stock names, and the rows of the few trained tokens at their ids in CLIP's full vocabulary."""
        sizes = {key.removeprefix(PREFIX): weight for key, weight in state_dict.items() if key.startswith(PREFIX)}
        for key in sizes:
            state_dict.pop(PREFIX + key)
        ids = sizes.pop("token_ids").long()
        unknown, known = sizes[TABLE][:1], sizes[TABLE][1:]
        table = unknown.repeat(CLIP_VOCABULARY, 1)
        table[ids] = known
        return {f"clip_l.{key}": weight for key, weight in {**sizes, TABLE: table}.items()}

    def process_clip_state_dict_for_saving(self, state_dict: dict) -> dict:
        return {key.replace("clip_l.", PREFIX, 1): weight for key, weight in state_dict.items()} | {
            TOKEN_IDS: torch.arange(1, CLIP_VOCABULARY)
        }  # row 0 stays the unknown one


class MiniBaseFull(MiniBase):
    """The `full` preset."""

    unet_config = {**MiniBase.unet_config, "model_channels": 96, "context_dim": 256}


class MiniControl(MiniBase):
    """The ControlNet of the `cpu` preset: the loader needs the family of its encoder."""

    required_keys = {"input_hint_block.0.weight": None}


class MiniControlFull(MiniBaseFull):
    """The ControlNet of the `full` preset."""

    required_keys = {"input_hint_block.0.weight": None}


def text_config(state_dict: dict) -> dict:
    """CLIP's configuration, from the shapes of the checkpoint's own text encoder (heads are 32 channels wide)."""
    layers = {
        key.split(".layers.")[1].split(".")[0] for key in state_dict if key.startswith(PREFIX) and ".layers." in key
    }
    width = state_dict[PREFIX + TABLE].shape[1]
    return {
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // 32,
        "intermediate_size": 4 * width,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    }


def tokenizer_class(width: int) -> type:
    """The stock CLIP tokenizer with the width of the model's textual-inversion embeddings."""

    class Tokenizer(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            super().__init__(
                embedding_directory=embedding_directory, embedding_size=width, tokenizer_data=tokenizer_data
            )

    class MiniBaseTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            super().__init__(
                embedding_directory=embedding_directory, tokenizer_data=tokenizer_data, tokenizer=Tokenizer
            )

    return MiniBaseTokenizer


def text_class(config: dict) -> type:
    """CLIP's text model of the size in `config`."""

    class Encoder(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(config),
                return_projected_pooled=False,
                model_options=model_options,
            )

    class MiniBaseText(sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=Encoder)

    return MiniBaseText


supported_models.models += [MiniBase, MiniBaseFull, MiniControl, MiniControlFull]
