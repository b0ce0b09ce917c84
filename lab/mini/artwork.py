"""Artwork of the mini base: emoji drawings rendered once to RGBA and packed into one archive.

Five to eight drawings of most concepts (six designs of their own and two renderings of a seventh) come from
npm packages; their licences stand in README.md. The archive is a zip of 256 px WebP files with alpha,
named `<concept>/<drawing>.webp`.
"""

import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from .checkpoint import write_whole

SIDE = 256
DRAWINGS = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
}
NAMES_PACKAGE = "unicode-emoji-json@0.9.0"
GROUPS = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")

HERE = Path(__file__).parent
ARCHIVE = HERE / "artwork.zip"
KINDS, KINDS_SIDE = HERE / "kinds.zip", 128  # every third of the other concepts: what wide pictures show
HELD_OUT = HERE / "held_out.json"


def fetch_package(spec: str, folder: Path) -> tarfile.TarFile:
    """The tarball of an npm package `name@version`, fetched by `npm pack` when it is not in `folder`."""
    name, version = spec.rsplit("@", 1)
    path = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", spec, "--pack-destination", str(folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"Cannot fetch {spec} with `npm pack`: {error}. Put its tarball at {path}.") from error
    try:
        return tarfile.open(path)
    except (OSError, tarfile.TarError) as error:
        raise SystemExit(f"{path} is no npm tarball ({error}): remove it, and it is fetched anew.") from error


def list_concepts(folder: Path, names: tuple[str, ...] | None) -> dict[str, str]:
    """{emoji name: code points}, e.g. {"butterfly": "1f98b"}: the named ones, or every one of GROUPS."""
    with fetch_package(NAMES_PACKAGE, folder) as package:
        table = json.load(package.extractfile("package/data-by-emoji.json"))
    concepts = {
        entry["name"].lower(): "-".join(f"{ord(c):x}" for c in emoji)
        for emoji, entry in table.items()
        if entry["group"] in GROUPS
    }
    if names is None:
        return concepts
    unknown = [name for name in names if name not in concepts]
    if unknown:
        raise SystemExit(f"No emoji is named {', '.join(unknown)} in {NAMES_PACKAGE}.")
    return {name: concepts[name] for name in names}


def list_other_kinds(folder: Path, known: set[str]) -> tuple[str, ...]:
    """Every third of the concepts, by name, that are not `known` and not held out in every drawing."""
    withheld = {name for name, out in json.loads(HELD_OUT.read_text()).items() if len(out) == len(DRAWINGS)}
    return tuple(sorted(set(list_concepts(folder, None)) - known - withheld)[::3])


def svg_renderer(package: tarfile.TarFile, side: int):
    """(concept, code points) -> RGBA image [side, side], from an iconify package (noto-v1 lacks the table of codes)."""
    try:
        import resvg_py  # needed only to build the archive
    except ImportError as error:
        raise SystemExit(
            "The drawings are rendered with resvg_py, which is not installed: pip install resvg_py."
        ) from error

    chars = json.load(package.extractfile("package/chars.json"))
    icons = json.load(package.extractfile("package/icons.json"))

    def render(concept: str, code: str) -> Image.Image:
        name = chars.get(code) or chars.get(code.removesuffix("-fe0f")) or concept.replace(" ", "-")
        icon = icons["icons"][name]
        width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

    return render


def webp_renderer(package: tarfile.TarFile, side: int):
    """(concept, code points) -> RGBA image [side, side], from the 3d package's ready pictures."""
    members = {Path(m.name).stem: m for m in package.getmembers()}

    def render(concept: str, code: str) -> Image.Image:
        member = members.get(code) or members[code.removesuffix("-fe0f")]
        return Image.open(io.BytesIO(package.extractfile(member).read())).convert("RGBA").resize((side, side))

    return render


def build_archive(path: Path, npm_folder: Path, names: tuple[str, ...] | None, side: int = SIDE) -> None:
    """Render every drawing of the concepts and pack them; missing or broken ones are counted and told."""
    concepts, skipped = list_concepts(npm_folder, names), []
    tasks = [(drawing, npm_folder, concepts, side) for drawing in DRAWINGS]

    def pack(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive, ProcessPoolExecutor() as workers:
            for drawing, files in zip(DRAWINGS, workers.map(draw_set, tasks)):
                for concept, file in files.items():
                    if file is None:
                        skipped.append(f"{concept}/{drawing}")
                    else:
                        archive.writestr(f"{concept}/{drawing}.webp", file)
                print(f"drew {drawing}", flush=True)

    write_whole(path, pack)
    if skipped:
        more = ", ..." if len(skipped) > 8 else ""
        print(f"{len(skipped)} drawings are missing or broken and were left out: {', '.join(skipped[:8])}{more}")


def draw_set(task: tuple[str, Path, dict[str, str], int]) -> dict[str, bytes | None]:
    """{concept: its WebP file, or None where it cannot be drawn} in one set of drawings.

    task: (set of drawings, folder of npm tarballs, {concept: code points}, side)
    """
    drawing, npm_folder, concepts, side = task
    package = fetch_package(DRAWINGS[drawing], npm_folder)
    render = (webp_renderer if drawing == "fluent-3d" else svg_renderer)(package, side)
    files: dict[str, bytes | None] = dict.fromkeys(concepts)
    for concept, code in concepts.items():
        image = rendered(render, concept, code)
        if image is not None:
            data = io.BytesIO()
            image.save(data, "WEBP", quality=90, method=6)
            files[concept] = data.getvalue()
    return files


def rendered(render: Callable[[str, str], Image.Image], concept: str, code: str) -> Image.Image | None:
    """The drawing, or None where the package has none, or a broken or an empty one."""
    try:
        image = render(concept, code)
    except (KeyError, OSError, ValueError, RuntimeError):
        return None
    return image if image.getchannel("A").getbbox() else None


def load_artwork(path: Path) -> dict[tuple[str, str], Image.Image]:
    """{(concept, drawing): RGBA image, cropped to its alpha}."""
    artwork = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                concept, drawing = name.removesuffix(".webp").split("/")
                image = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
                artwork[concept, drawing] = image.crop(image.getchannel("A").getbbox())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{path} is no archive of drawings ({error}): `data --archive FILE` makes one.") from error
    return artwork


def load_held_out() -> set[tuple[str, str]]:
    """(concept, drawing) pairs that no training picture may show."""
    return {
        (concept, drawing) for concept, drawings in json.loads(HELD_OUT.read_text()).items() for drawing in drawings
    }


def training_artwork(path: Path) -> dict[str, list[Image.Image]]:
    """{concept: its training drawings}."""
    held_out, concepts = load_held_out(), {}
    for (concept, drawing), image in load_artwork(path).items():
        if (concept, drawing) not in held_out:
            concepts.setdefault(concept, []).append(image)
    return concepts
