"""`python3 -m lab mini STAGE`: make the mini base, stage by stage. An interrupted stage can be resumed."""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .checkpoint import require, same_options
from .config import PRESETS, Preset
from .shipped import BASE, CONTROL

ROOT = Path(__file__).parents[2]
SHEET_CAPTIONS = (
    "a robot, on white",
    "a monster, on grass",
    "a cat, on a night sky",
    "a red car, on a road",
    "a house, on snow",
    "a mug, on a wooden floor",
    "a bottle, on a beach",
    "a blue shirt, on pink",
    "two robots, on a brick wall",
    "a cat, on a tiled floor",
)


def write_vocabulary(args: argparse.Namespace, preset: Preset) -> None:
    """Token ids of every word that a caption can have. The result is in the repository, so this seldom runs."""
    from lab.world import all_captions_words

    from .text import VOCABULARY, WORDS, build_vocabulary

    tokenizer = args.host / "comfy" / "sd1_tokenizer"
    if not tokenizer.exists():
        raise SystemExit(f"The stock CLIP tokenizer is not at {tokenizer}: set COMFYUI_PATH or give --host.")
    words = {part for word in (*all_captions_words(), ",") for part in WORDS.findall(word)}
    VOCABULARY.write_text(json.dumps(build_vocabulary(words, tokenizer).words, ensure_ascii=False))


def compose_data(args: argparse.Namespace, preset: Preset) -> None:
    from .pictures import compose_all, composed

    for shape in preset.counts:
        if not composed(args.folder, shape):
            compose_all(args.folder, preset, shape)


def train_autoencoder_stage(args: argparse.Namespace, preset: Preset) -> bool:
    """Train the autoencoder. Returns whether it is finished."""
    from .train_autoencoder import held_out_psnr, load_autoencoder, train_autoencoder

    if not train_autoencoder(args.folder, preset, args.device, args.until):
        print("the autoencoder is not finished: run the same command again to go on")
        return False
    psnr = held_out_psnr(load_autoencoder(args.folder, preset), preset)
    print(f"autoencoder: {psnr:.2f} dB on pictures of held-out individuals")
    return True


def train_decoder(args: argparse.Namespace, preset: Preset) -> None:
    """Train only the decoder, for the existing latents."""
    from .train_autoencoder import held_out_psnr, load_autoencoder, train_autoencoder

    train_autoencoder(args.folder, preset, args.device, args.until, decoder_alone=True)
    psnr = held_out_psnr(load_autoencoder(args.folder, preset), preset)
    print(f"autoencoder: {psnr:.2f} dB on pictures of held-out individuals")


def encode_latents(args: argparse.Namespace, preset: Preset) -> None:
    from .latents import encode_all

    if not (args.folder / "latents.pt").exists():
        encode_all(args.folder, preset, args.device)


def train(args: argparse.Namespace, preset: Preset) -> None:
    """Run every stage that is missing, then train the U-Net and its text encoder."""
    from . import train_unet

    if not (args.folder / "latents.pt").exists():
        compose_data(args, preset)
        if not train_autoencoder_stage(args, preset):
            return
        encode_latents(args, preset)
    kind = train_unet.MiniBase
    train_unet.train(args.folder, preset, args.device, args.workers, kind, preset.steps, args.until)


def train_controlnet(args: argparse.Namespace, preset: Preset) -> None:
    """Train the layout ControlNet on the present U-Net."""
    from . import controlnet, train_unet

    kind = controlnet.LayoutControl
    train_unet.train(args.folder, preset, args.device, args.workers, kind, preset.controlnet_steps, args.until)


def export_weights(args: argparse.Namespace, preset: Preset) -> None:
    from .export import export, export_controlnet

    export(args.folder, preset, args.weights)
    export_controlnet(args.folder, preset, args.weights.with_name(CONTROL))


def make_sheet(args: argparse.Namespace, preset: Preset) -> None:
    from .sheet import import_host, paint_sheet

    require(args.weights, "export")
    import_host(args.host)
    paint_sheet(
        args.weights,
        args.folder / "sheet.png",
        args.captions or list(SHEET_CAPTIONS),
        list(range(args.seeds)),
        preset.side,
    )


def train_encoder(args: argparse.Namespace, preset: Preset) -> None:
    """Train the subject encoder with the pack's own pre-training: shards, image tower, then encoder.toml."""
    from .train_encoder import train_encoder

    train_encoder(args, preset)


def pack_weights(args: argparse.Namespace, preset: Preset) -> None:
    """Pack the files of `export` and `encoder` into the repository, with 8 bits per weight."""
    from .packed import pack_all

    pack_all(args.weights.parent)


STAGES: dict[str, Callable[[argparse.Namespace, Preset], object]] = {
    "vocabulary": write_vocabulary,
    "data": compose_data,
    "autoencoder": train_autoencoder_stage,
    "latents": encode_latents,
    "decoder": train_decoder,
    "train": train,
    "controlnet": train_controlnet,
    "encoder": train_encoder,
    "export": export_weights,
    "sheet": make_sheet,
    "pack": pack_weights,
}
# these make or use the composed pictures
ON_DATA = ("data", "autoencoder", "latents", "decoder", "train", "controlnet")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab mini", description=__doc__)
    parser.add_argument("stage", choices=STAGES, help="`train` runs what is missing before it")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="work files (.lab/mini/<preset>)")
    parser.add_argument(
        "--host", type=Path, default=Path(os.environ.get("COMFYUI_PATH", ROOT / ".lab" / "comfyui-0.3.75"))
    )
    parser.add_argument("--weights", type=Path, help="the exported checkpoint (FOLDER/mini_base.safetensors)")
    parser.add_argument("--steps", type=int, help="all U-Net steps; may change when a run resumes")
    parser.add_argument("--minutes", type=float, help="stop training after so many minutes, to go on later")
    parser.add_argument("--autoencoder-steps", type=int)
    parser.add_argument("--decoder-steps", type=int)
    parser.add_argument("--controlnet-steps", type=int)
    parser.add_argument("--pictures", type=int, help="how many square pictures are composed")
    parser.add_argument("--wide-pictures", type=int, help="how many wide ones; 0 is none")
    parser.add_argument("--repeated", type=float, help="share of the square ones that show an individual twice")
    parser.add_argument("--workers", type=int, default=1, help="CPU cores to train on, one worker each")
    parser.add_argument("--samples", type=int, default=3500, help="how many samples the subject encoder trains on")
    parser.add_argument("--encoder-steps", type=int, help="steps of the subject encoder")
    parser.add_argument("--without-layout", action="store_true", help="the subject encoder without the ControlNet")
    parser.add_argument("--seeds", type=int, default=4, help="rows of the sheet")
    parser.add_argument("--captions", nargs="*", help="columns of the sheet")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    args = parse(argv)
    given = ("steps", "autoencoder_steps", "decoder_steps", "controlnet_steps", "pictures", "wide_pictures", "repeated")
    chosen = {name: getattr(args, name) for name in given if getattr(args, name) is not None}
    preset = dataclasses.replace(PRESETS[args.preset], **chosen)
    args.folder = args.folder or ROOT / ".lab" / "mini" / args.preset
    args.weights = args.weights or args.folder / BASE
    if args.minutes is not None and args.workers > 1:
        raise SystemExit(f"--minutes is for one worker, but --workers is {args.workers}: use only one of the two.")
    args.until = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        if args.stage in ON_DATA:
            check_options(args, preset)
        STAGES[args.stage](args, preset)
    except ModuleNotFoundError as error:
        raise SystemExit(f"The `{args.stage}` stage needs {error.name}, which is not installed: install it.") from error
    except OSError as error:
        raise SystemExit(f"The `{args.stage}` stage stopped: {error}.") from error
    return 0


def check_options(args: argparse.Namespace, preset: Preset) -> None:
    """Check that existing pictures were composed with these options, which would otherwise be ignored."""
    options = {"preset": args.preset, "repeated": preset.repeated}
    options |= {"pictures": preset.pictures, "wide-pictures": preset.wide_pictures}
    made = any((args.folder / name).exists() for name in ("pictures.npy", "latents.pt"))
    same_options(args.folder / "data.json", options, made)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
