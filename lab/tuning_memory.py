"""Count the memory of a step of Subject Tuning: the node's own networks, at their real sizes, without arithmetic.

Every tensor is a fake tensor of torch: it has a shape and a type, and its bytes are counted from its creation until it
is freed. The base is in fp16, the model computes in bf16 and what is trained is in fp32, as on a GPU. Not counted:
CUDA's own context (about half a gigabyte), the workspace of kernels, fragmentation, and copies of foreach optimisers.
So it is a count, not a measurement.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lab.bench_unet import MODELS, POOLED
from lab.inside import PACK

GIGABYTE = 1024**3
START, END, WORDS = 49406, 49407, (320, 42)  # CLIP's tokens; any two words


@dataclass(frozen=True)
class Case:
    """Settings of the node that memory depends on. side: of the pictures, in pixels."""

    model: str
    side: int
    method: str = "lora"
    rank: int = 16
    text_encoder: bool = True
    checkpointing: bool = True
    precision: str = "bf16"

    def __str__(self) -> str:
        options = [self.method, f"rank {self.rank}" if self.method == "lora" else "", self.precision]
        options += ["" if self.text_encoder else "text encoder off", "" if self.checkpointing else "no checkpointing"]
        return f"{self.model} {self.side}, {', '.join(filter(None, options))}"


@dataclass(frozen=True)
class Count:
    """Bytes. frozen: of all networks; learned: parameters and AdamW's moments; peak: the largest sum of all.

    kept: saved by the forward pass for the backward pass.
    """

    frozen: int
    learned: int
    kept: int
    peak: int

    def __str__(self) -> str:
        parts = [f"{name} {value / GIGABYTE:5.2f}" for name, value in vars(self).items()]
        return ", ".join(parts) + " GiB"


class Live(TorchDispatchMode):
    """Counts the bytes of every storage that is created inside this context, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.note(x)
        return out

    def note(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def counted(case: Case) -> Count:
    """Count one step of that case, not the first one: the optimiser has its moments."""
    adapters, networks, prediction = (
        importlib.import_module(f"{PACK}.dreamtuner_core.host.tuning.{name}")
        for name in ("adapters", "networks", "predict")
    )
    calls = importlib.import_module(f"{PACK}.dreamtuner_core.host.calls")
    units = importlib.import_module(f"{PACK}.dreamtuner_core.host.unet")
    import comfy.ldm.modules.attention as attention
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    stay = mock.patch.object(nn.Module, "to", lambda module, *args, **kwargs: module)  # everything is already in place
    kernel = mock.patch.object(attention, "optimized_attention", attention.attention_pytorch)  # a GPU's
    with stay, kernel, FakeTensorMode(allow_non_fake_inputs=True) as mode, Live() as live, torch.enable_grad():
        model, clip = _unet(case, mode), _text_encoders(case)
        patchers = [ModelPatcher(x, cpu, cpu) for x in (model, clip)]
        frozen = live.now
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[case.precision]
        unet = adapters.unet_adapters(patchers[0], case.method, case.rank, 0, dtype, cpu)
        method = case.method if case.text_encoder else None
        patched = SimpleNamespace(patcher=patchers[1], cond_stage_model=clip)
        text = adapters.text_adapters(patched, method, case.rank, 0, cpu)
        words = {name: nn.Parameter(torch.zeros(width)) for name, width in _encoders(case).items()}
        learning = [*unet.parameters.values(), *text.parameters.values(), *words.values()]
        optimizer = torch.optim.AdamW(learning, foreach=False)
        layers = list(units.self_attentions(patchers[0]))
        for trained in (unet, text):
            trained.patcher.patch_model(cpu)

        def encoded(with_word: bool) -> Any:
            tokens = {name: [_chunk(words[name] if with_word else None)] for name in words}
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone() if x.ndim == 3 else x, lambda x: x):
                return calls.Text(*clip.encode_token_weights(tokens)[:2])

        def loss() -> Tensor:
            texts = [encoded(True), encoded(False)]
            noisy, sigma = torch.zeros(2, 4, case.side // 8, case.side // 8), torch.ones(2)
            return prediction.predict(unet.patcher.model, noisy, sigma, texts, layers).square().mean()

        with ExitStack() as recomputed:
            for part in (model.diffusion_model, clip) if case.checkpointing else ():
                recomputed.enter_context(networks.recomputed(part))
            for parameter in learning:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # now it has its moments
            optimizer.zero_grad()
            gc.collect()
            before = live.peak = live.now
            result = loss()
            kept = live.now - before
            result.backward()
            del result
            optimizer.step()
        return Count(frozen, before - frozen, kept, live.peak)


def _faked(network: nn.Module) -> Any:
    """Replace the network's weights, on the meta device, by fake ones on the CPU, in fp16."""
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=torch.float16)
                module._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network


def _unet(case: Case, mode: FakeTensorMode) -> Any:
    import comfy.ops
    import comfy.supported_models

    family = comfy.supported_models.SDXL if case.model == "sdxl" else comfy.supported_models.SD15
    config = family(MODELS[case.model])
    config.set_inference_dtype(torch.float16, None)
    config.custom_operations = comfy.ops.disable_weight_init
    mode.__exit__(None, None, None)  # the noise levels are real numbers
    try:
        model = config.get_model({}, "", device=torch.device("meta"))
    finally:
        mode.__enter__()
    _faked(model.diffusion_model)
    return model


def _text_encoders(case: Case) -> Any:
    import comfy.sd1_clip
    import comfy.sdxl_clip

    kind = comfy.sdxl_clip.SDXLClipModel if case.model == "sdxl" else comfy.sd1_clip.SD1ClipModel
    return _faked(kind(device="meta", dtype=torch.float16))


def _encoders(case: Case) -> dict[str, int]:
    """Widths of the text encoders, by the tokenizer's name."""
    return {"l": 768, "g": POOLED} if case.model == "sdxl" else {"l": 768}


def _chunk(word: Tensor | None) -> list[tuple[Any, float]]:
    tokens = [START, *WORDS, *([] if word is None else [word]), END]
    return [(token, 1.0) for token in (*tokens, *[END] * (77 - len(tokens)))]
