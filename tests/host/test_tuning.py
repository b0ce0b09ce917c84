"""Subject tuning through the host: standard files, no trace, and survival of any end."""

import json
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from dreamtuner_pack.dreamtuner_core.host import files as host_files
from dreamtuner_pack.dreamtuner_core.host.settings import KEY
from dreamtuner_pack.dreamtuner_core.host.tuning import adapters as tuning_adapters
from dreamtuner_pack.dreamtuner_core.host.tuning import files as tuning_files
from dreamtuner_pack.dreamtuner_core.host.tuning import job as tuning_job
from dreamtuner_pack.dreamtuner_core.host.tuning import networks as tuning_networks
from dreamtuner_pack.dreamtuner_core.host.tuning import regular as regular_pictures
from dreamtuner_pack.dreamtuner_core.host.tuning import store, tune
from dreamtuner_pack.dreamtuner_core.host.tuning import train as tuning_run
from dreamtuner_pack.dreamtuner_core.host.tuning.job import Job
from dreamtuner_pack.dreamtuner_core.host.tuning.pairs import make_pairs
from dreamtuner_pack.dreamtuner_core.host.tuning.train import Training
from dreamtuner_pack.dreamtuner_core.rights import OwnedSubject, Rights
from dreamtuner_pack.dreamtuner_core.texts import checked_name
from dreamtuner_pack.dreamtuner_core.tuning.config import TuningConfig
from dreamtuner_pack.dreamtuner_core.tuning.loop import Tuning
from dreamtuner_pack.dreamtuner_core.tuning.report import report
from families import text, tiny_model
from graph import attend, kept_bytes, sample
from graph import subject as random_subject
from torch import Tensor
from tuning_ends import Stop, picture, same, stop_at, tensors
from tuning_world import EMBEDDINGS, SETTINGS, STEPS, World, folders, tiny_clip

import nodes

pytestmark = pytest.mark.usefixtures("quick_samples")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with folders(tmp_path):
        yield World(tmp_path)


def tuned_as_stock_nodes_load_it(world: World, method: str) -> tuple[Any, Any, torch.Tensor]:
    """Tune, and see that stock nodes draw the same: the tuning, what they loaded, and the picture."""
    prompt = "a photo of a dog embedding:rex, on grass"
    before = picture(world.model, world.clip, "a dog")
    tuned = world.tune(steps=2, method=method)
    wanted = picture(tuned.model, tuned.clip, prompt)
    stock = nodes.LoraLoader().load_lora(world.model, world.clip, "rex.safetensors", 1.0, 1.0)
    assert torch.equal(picture(*stock, prompt), wanted)
    assert torch.equal(picture(world.model, world.clip, "a dog"), before), "the untouched model draws as before"
    assert not torch.equal(picture(tuned.model, tuned.clip, "a dog"), before), "something was learned"
    return tuned, stock, wanted


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("sd1", {}),
        ("sd2", {"v_prediction": True}),
        ("sdxl", {}),
        ("sd1", {"in_channels": 9}),
        ("sd1", {"dtype": torch.float8_e4m3fn, "computed_in": torch.float32}),
    ],
    ids=["sd1", "sd2-v", "sdxl", "inpainting", "fp8"],
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_stock_nodes_reproduce_the_output(tmp_path: Path, family: str, model: dict, method: str) -> None:
    with folders(tmp_path):
        world = World(tmp_path, family, **model)
        tuned, stock, wanted = tuned_as_stock_nodes_load_it(world, method)
        assert not torch.equal(picture(*stock, "a photo of a dog, on grass"), wanted), "the word is read"
        assert set(tuned.subject.words) == set(world.clip.tokenize(""))
        assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.skipif(not hasattr(comfy.ops, "scaled_fp8_ops"), reason="this host keeps scaled weights in another way")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_scaled_fp8_is_tuned_as_it_is(world: World, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's fp8 with a scale beside each weight; it rounds what a LoRA makes of them, the same each time."""
    monkeypatch.setattr(comfy.ops, "manual_cast", comfy.ops.scaled_fp8_ops())
    world.model = tiny_model("sd1", torch.float8_e4m3fn, computed_in=torch.float32)
    tuned_as_stock_nodes_load_it(world, method)


def test_every_tensor_of_the_lora_is_loaded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for method in ("lora", "full"):
        world.tune(f"rex_{method}", steps=1, method=method)
        nodes.LoraLoader().load_lora(world.model, world.clip, f"rex_{method}.safetensors", 1.0, 1.0)
    assert "not loaded" not in caplog.text.lower()


def test_names_in_the_lora_are_those_of_other_tools(world: World) -> None:
    world.tune(steps=1)
    names = set(tensors(world.loras / "rex.safetensors"))
    for layer in (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_te_text_model_encoder_layers_1_mlp_fc2",
    ):
        assert {f"{layer}.lora_up.weight", f"{layer}.lora_down.weight", f"{layer}.alpha"} <= names


def test_trained_model_is_the_model_that_is_saved(world: World) -> None:
    """The wrappers of the training, and the host's LoRA of the same numbers, predict alike."""
    job = Job(world.model, world.clip, world.vae, world.subject, "dog", "rex", TuningConfig(steps=2, **SETTINGS))
    with Training(job, make_pairs(job)) as training:
        training.run()
        training.load()
        trained = sample(training.unet.patcher, text("sd1", 1), text("sd1", 2))
    stock, _ = nodes.LoraLoader().load_lora(world.model, None, "rex.safetensors", 1.0, 1.0)
    loaded = sample(stock, text("sd1", 1), text("sd1", 2))
    torch.testing.assert_close(trained, loaded, atol=2e-4, rtol=2e-4)
    assert (loaded - sample(world.model, text("sd1", 1), text("sd1", 2))).abs().max() > 1e-2


def test_the_word_begins_as_the_mean_of_a_split_class_word(world: World) -> None:
    job = Job(world.model, world.clip, world.vae, world.subject, "dachshundlike", "rex", TuningConfig())
    ids = [token for token, _ in world.clip.tokenize("dachshundlike")["l"][0]][1:-1]
    ids = ids[: ids.index(49407)]
    assert len(ids) > 1, "the tokenizer must split it for this test"
    table = world.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    torch.testing.assert_close(job.texts.words["l"], table[ids].float().mean(0))
    assert world.tune(class_word="dachshundlike", steps=1).subject.phrase == "dachshundlike embedding:rex"


def test_training_reads_the_word_as_the_host_reads_its_file(world: World) -> None:
    tuned = world.tune(steps=1)
    job = Job(world.model, world.clip, world.vae, world.subject, "dog", "rex", TuningConfig(steps=1, **SETTINGS))
    job.texts.words.update(tuned.subject.words)
    ours, hosts = job.texts.with_word()["l"][0], world.clip.tokenize("a dog embedding:rex")["l"][0]
    assert len(ours) == len(hosts)
    for (a, _), (b, _) in zip(ours, hosts, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_text_encoder_off_leaves_it_alone(world: World) -> None:
    tuned = world.tune(steps=1, text_encoder=False)
    assert not [name for name in tensors(world.loras / "rex.safetensors") if name.startswith("lora_te")]
    assert torch.equal(picture(world.model, tuned.clip, "a dog"), picture(world.model, world.clip, "a dog"))


def test_a_caller_that_records_gradients_gets_the_same(world: World) -> None:
    """A script, and not a node: there the subject's latent and caption carry the graph that made them."""

    def traced(x: Any) -> Any:
        return x.clone().requires_grad_() * torch.ones_like(x) if isinstance(x, torch.Tensor) else x

    world.tune("inside", regular_from="both")
    with torch.inference_mode(False), torch.enable_grad():
        (cross, more), *_ = world.subject.caption
        caption = [[traced(cross), {name: traced(x) for name, x in more.items()}]]
        world.subject = replace(world.subject, latent=traced(world.subject.latent), caption=caption)
        world.tune("outside", regular_from="both")
    assert same(world.loras / "inside.safetensors", world.loras / "outside.safetensors")


def test_checkpointing_changes_nothing(world: World) -> None:
    world.tune("one", gradient_checkpointing=True)
    world.tune("two", gradient_checkpointing=False)
    assert same(world.loras / "one.safetensors", world.loras / "two.safetensors")


def test_a_kernel_without_a_way_back_is_not_trained_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tune("plain", steps=2)
    kernel = attention.optimized_attention

    def attention_sage(*args: Any, **kwargs: Any) -> torch.Tensor:
        return kernel(*args, **kwargs).detach()

    monkeypatch.setattr(attention, "optimized_attention", attention_sage)
    world.tune("sage", steps=2)
    learned, wanted = (tensors(world.loras / f"{name}.safetensors") for name in ("sage", "plain"))
    for name in wanted:
        if name.endswith("attn1_to_v.lora_up.weight"):
            assert wanted[name].abs().max() > 0
            torch.testing.assert_close(learned[name], wanted[name], atol=1e-3, rtol=0.1)


def streamed(patch: pytest.MonkeyPatch, patcher: Any, copy: Any) -> None:
    """Make it what the newest hosts make of a model on an NVIDIA GPU. copy: loads it again, or fails to."""
    plain = type(patcher)

    class Streamed(plain):  # type: ignore[misc, valid-type]
        def is_dynamic(self) -> bool:
            return True

        def clone(self, disable_dynamic: bool = False) -> Any:
            return copy() if disable_dynamic else super().clone()

        def add_weight_wrapper(self, *args: Any) -> None:
            pytest.fail("small weights that stream take no wrapper")

    patch.setattr(patcher, "__class__", Streamed)


def test_streamed_networks_rest_and_their_copies_learn_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tune("one")
    with monkeypatch.context() as patch:
        streamed(patch, world.model, lambda: tiny_model("sd1"))
        streamed(patch, world.clip.patcher, lambda: tiny_clip("sd1", EMBEDDINGS).patcher)
        world.tune("two")
    assert same(world.loras / "one.safetensors", world.loras / "two.safetensors")
    assert same(world.embeddings / "one.safetensors", world.embeddings / "two.safetensors")


def test_streamed_weights_that_cannot_be_loaded_again_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise RuntimeError("Cannot create non-dynamic delegate: cached_patcher_init is not initialized.")

    streamed(monkeypatch, world.model, refuse)
    with pytest.raises(ValueError, match=r"with Load Checkpoint, or start ComfyUI with --disable-dynamic-vram\.$"):
        world.tune()


def test_an_offloaded_weight_outlives_the_buffer_that_it_came_in() -> None:
    module, buffer = torch.nn.Linear(2, 2, device="meta"), torch.ones(2, 2)
    fresh = tuning_adapters._detached(module, None, "weight", torch.device("cpu"))(buffer)
    buffer.zero_()
    assert fresh.sum() == 4


def test_auto_is_what_the_method_can_learn_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: True)
    found = {
        (method, kind): tuning_job._precision(TuningConfig(method=method), torch.device(kind))
        for method in ("lora", "full")
        for kind in ("cuda", "cpu")
    }
    assert {how for how, precision in found.items() if precision == "bf16"} == {("lora", "cuda")}


def test_another_packs_own_forward_outlives_checkpointing(world: World) -> None:
    network = world.model.model.diffusion_model
    block = next(m for m in network.modules() if type(m).__name__ == "ResBlock")
    own = block.forward = block.forward
    with tuning_networks.recomputed(network):
        assert block.forward is not own
    assert block.forward is own
    del block.forward


def test_training_works_in_a_lower_precision(world: World) -> None:
    tuned = world.tune(steps=1, precision="bf16")
    assert torch.isfinite(picture(tuned.model, tuned.clip, "a dog embedding:rex")).all()
    assert world.model.model.manual_cast_dtype is None, "the model computes as before"


def test_report_shows_the_losses_and_samples_of_the_state(world: World) -> None:
    tuned = world.tune()
    state = tensors(world.own / "tuning" / "rex" / "state.safetensors")
    assert len(state["losses"]) == STEPS
    assert sorted(n for n in state if n.startswith("samples.")) == [f"samples.{i}" for i in range(STEPS + 1)]
    wanted = report(
        f"rex: a dog, {STEPS} steps, lora",
        state["losses"].tolist(),
        {step: state[f"samples.{step}"] for step in range(STEPS + 1)},
        ["a dog rex", "a dog rex", "a dog"],
    )
    assert torch.equal(tuned.report, wanted)


@pytest.mark.parametrize("trained", [False, True], ids=["the text encoder stays", "it is trained"])
def test_nothing_is_encoded_or_decoded_twice(world: World, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text encoder and the VAE never get one input twice, unless the weights have changed in between.

    What is trained is asked once more with gradients after a sample without them.
    """
    calls, taken, advance = [], [], Tuning.advance

    def count(thing: Any, name: str, state: Callable[[], Any] = lambda: None) -> None:
        original = getattr(thing, name)

        def counting(given: Any) -> Any:
            calls.append((name, json.dumps(given, default=Tensor.tolist), state()))
            return original(given)

        monkeypatch.setattr(thing, name, counting)

    state = lambda: (torch.is_inference_mode_enabled(), len(taken) if trained else 0)  # noqa: E731
    count(world.clip.cond_stage_model, "encode_token_weights", state)
    count(world.vae, "encode")
    count(world.vae, "decode")
    monkeypatch.setattr(Tuning, "advance", lambda tuning: taken.append(advance(tuning)) or taken[-1])
    world.tune(steps=3, text_encoder=trained, regular_from="both")
    assert len(taken) == 3
    assert {name for name, *_ in calls} == {"encode_token_weights", "encode", "decode"}
    assert [call for call, times in Counter(calls).items() if times > 1] == []


# --- regular pictures ------------------------------------------------------------------------------------------------


def test_regular_pictures_are_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tune(steps=1)
    (folder,) = (world.own / "regular").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == SETTINGS["regular_pictures"]
    world.tune("other", steps=1, seed=3, regular_pictures=3)
    assert list((world.own / "regular").iterdir()) == [folder]
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(after) == 3
    assert before.items() <= after.items()


def test_regular_pictures_see_the_subject_without_its_mask(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    draw = regular_pictures.draw

    def noted(model: Any, *args: Any) -> torch.Tensor:
        seen.append(model.get_attachment(KEY))
        return draw(model, *args)

    monkeypatch.setattr(regular_pictures, "draw", noted)
    world.tune(steps=1)
    assert [(a.weight, a.subject.mask) for a in seen[0].subjects] == [(3.0, None)]
    assert world.subject.mask is not None
    seen.clear()
    other = random_subject(mask=world.subject.mask, seed=77)
    world.model = attend(world.model, other, weight=2.0)
    world.tune("with_model", steps=1)
    assert [(a.weight, a.subject.mask) for a in seen[0].subjects] == [(2.0, None)]
    assert torch.equal(seen[0].subjects[0].subject.latent, other.latent)
    assert kept_bytes(world.model, other) == 0, "nothing was read of it with weights that were still learning"
    seen.clear()
    world.model = tiny_model("sd1")
    world.tune("plain", steps=1, regular_from="class")
    assert seen[0] is None


def test_regular_pictures_see_an_encoded_subject_through_its_encoder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the paper's strength, or as the model has it already; those of the bare class never."""
    seen = []
    draw = regular_pictures.draw

    def noted(model: Any, *args: Any) -> torch.Tensor:
        seen.append(model.get_attachment(KEY))
        return draw(model, *args)

    def at_work(name: str, **settings: Any) -> list[tuple[float, bool]]:
        seen.clear()
        with monkeypatch.context() as noting:  # samples along the way are drawn by another name
            noting.setattr(regular_pictures, "draw", noted)
            world.tune(name, steps=1, regular_pictures=1, **settings)
        encoders = seen[0].encoders if seen[0] else ()
        return [(a.strength, torch.equal(a.encoding.tokens, world.subject.encoding.tokens)) for a in encoders]

    bare = world.model
    world.see(strength=0.5)
    drawn = {}
    for name, wanted in (("as_it_is", [(0.5, True)]), ("not_yet", [(0.2, True)])):
        assert at_work(name) == wanted
        drawn[name] = {str(p): tensors(p)["latents"] for p in world.own.rglob("regular/*/*.safetensors")}
        world.model = bare
    new = drawn["not_yet"].keys() - drawn["as_it_is"].keys()
    assert len(new) == 1
    other = next(iter(drawn["as_it_is"].values()))
    assert not torch.equal(drawn["not_yet"][new.pop()], other), "another strength, another picture"
    world.see(strength=0.5)
    assert at_work("of_class", regular_from="class") == []


def test_half_of_the_class_and_half_resembling_are_told_what_drew_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[torch.Tensor] = []
    predict = tuning_run.predict

    def noted(model: Any, noisy: Any, sigma: Any, texts: Any, *more: Any) -> torch.Tensor:
        told.append(texts[1].cross)
        return predict(model, noisy, sigma, texts, *more)

    monkeypatch.setattr(tuning_run, "predict", noted)
    world.tune("resembling", steps=1, regular_pictures=2)
    (resembling,) = (world.own / "regular").iterdir()
    told.clear()
    job = Job(world.model, world.clip, world.vae, world.subject, "dog", "rex",
              TuningConfig(steps=8, **{**SETTINGS, "regular_pictures": 3, "regular_from": "both"}))  # fmt: skip
    pairs = make_pairs(job)
    assert sorted(p.name for p in resembling.iterdir()) == ["0000.safetensors", "0001.safetensors"], "they serve again"
    (of_class,) = set((world.own / "regular").iterdir()) - {resembling}
    assert [p.name for p in of_class.iterdir()] == ["0000.safetensors"]
    scaled = [
        world.model.model.process_latent_in(tensors(f / "0000.safetensors")["latents"]) for f in (resembling, of_class)
    ]
    assert torch.equal(pairs.regular[0], scaled[0])
    assert torch.equal(pairs.regular[2], scaled[1])
    with Training(job, pairs) as training:
        training.run()
    caption = world.subject.caption[0][0]
    draws = [pairs.draw(0, step, 0, 1000).regular for step in range(8)]
    assert set(draws) == {0, 1, 2}
    for regular, said in zip(draws, told, strict=True):
        assert (said.shape == caption.shape and torch.equal(said, caption)) == (regular < 2)


@pytest.mark.parametrize("kind", ["no caption", "empty caption", "no mask"])
def test_a_subject_with_less(world: World, kind: str) -> None:
    if kind == "no mask":
        world.subject = random_subject(mask=None)
    else:
        nothing = world.clip.encode_from_tokens_scheduled(world.clip.tokenize(""))
        world.subject = random_subject(mask=world.subject.mask, captioned=False)
        object.__setattr__(world.subject, "caption", None if kind == "no caption" else nothing)
    tuned = world.tune(steps=1, masked_loss=True)
    assert tuned.subject.steps == 1


# --- survival --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_at", [1, 2, 3])
def test_killed_and_queued_again_ends_bit_identical(
    world: World, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    """Killed outright: what the finally of a live process would still save is not saved."""
    world.tune("whole")
    with monkeypatch.context() as killed:
        killed.setattr(Training, "keep", lambda self: "")
        stop_at(killed, stopped_at)
        with pytest.raises(Stop):
            world.tune("broken")
    assert not (world.loras / "broken.safetensors").exists()
    tuned = world.tune("broken")
    assert same(world.loras / "broken.safetensors", world.loras / "whole.safetensors")
    assert same(world.embeddings / "broken.safetensors", world.embeddings / "whole.safetensors")
    states = [world.own / "tuning" / name / "state.safetensors" for name in ("broken", "whole")]
    assert same(*states)
    assert tuned.subject.steps == STEPS


def test_interrupt_keeps_what_was_learned_and_says_where(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    world.tune("whole")
    before = picture(world.model, world.clip, "a dog")
    with monkeypatch.context() as interrupted:
        stop_at(interrupted, 3, comfy.model_management.InterruptProcessingException)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            world.tune("rex")
    assert "rex_step3" in caplog.text
    assert tensors(world.loras / "rex_step3.safetensors")
    assert torch.isfinite(picture(world.model, world.clip, "a dog embedding:rex_step3")).all()
    assert torch.equal(picture(world.model, world.clip, "a dog"), before)
    world.tune("rex")
    assert same(world.loras / "rex.safetensors", world.loras / "whole.safetensors")


def test_a_failure_inside_the_optimiser_is_taken_up_before_it(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of the weights may have moved by then: such a state is no state to go on from."""
    caplog.set_level("INFO")
    world.tune("whole")
    step, calls = torch.optim.AdamW.step, iter(range(STEPS))

    def failing(self: Any, *args: Any) -> Any:
        step(self, *args)
        if next(calls) == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", failing)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            world.tune("rex")
    assert "stopped at step 3: queue again to go on from step 2" in caplog.text
    world.tune("rex")
    assert same(world.loras / "rex.safetensors", world.loras / "whole.safetensors")


def test_the_hosts_interrupt_is_obeyed_within_one_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    advance = Tuning.advance

    def pressed(self: Tuning) -> float:
        steps.append(self.step)
        loss = advance(self)
        if self.step == 2:
            comfy.model_management.interrupt_current_processing()
        return loss

    monkeypatch.setattr(Tuning, "advance", pressed)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        world.tune()
    assert steps == [0, 1]


def test_an_interrupt_among_regular_pictures_keeps_the_finished_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = regular_pictures.draw

    def once(*args: Any) -> torch.Tensor:
        if list(world.own.rglob("0000.safetensors")):
            raise comfy.model_management.InterruptProcessingException
        return draw(*args)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(regular_pictures, "draw", once)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            world.tune()
    assert len(list(world.own.rglob("regular/*/*.safetensors"))) == 1
    world.tune()


def test_unchanged_inputs_never_train_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.tune()
    stop_at(monkeypatch, 0)
    monkeypatch.setattr(tune, "make_pairs", lambda job: pytest.fail("nothing is to be drawn again"))
    again = world.tune()
    assert torch.equal(again.report, first.report)
    assert again.subject.lora_hash == first.subject.lora_hash
    prompt = "a dog embedding:rex"
    assert torch.equal(picture(again.model, again.clip, prompt), picture(first.model, first.clip, prompt))


def test_more_steps_go_on_and_end_as_if_asked_for_at_once(world: World) -> None:
    world.tune("grown", steps=2)
    world.tune("grown", steps=4)
    world.tune("whole", steps=4)
    assert same(world.loras / "grown.safetensors", world.loras / "whole.safetensors")
    with pytest.raises(ValueError, match="trained for 4 steps already"):
        world.tune("grown", steps=3)


def test_a_finished_tuning_stays_so_when_going_on_was_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = world.tune(steps=1)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Stop):
            world.tune(steps=3)
    again = world.tune(steps=1)
    assert again.subject.lora_hash == wanted.subject.lora_hash


def test_a_finished_full_tuning_is_small_on_disk_and_not_gone_on_with(world: World) -> None:
    world.tune(steps=1, method="full")
    assert not [n for n in tensors(world.own / "tuning" / "rex" / "state.safetensors") if n.startswith("optimizer")]
    world.tune(steps=1, method="full")
    with pytest.raises(ValueError, match="full tuning"):
        world.tune(steps=2, method="full")


@pytest.mark.parametrize("changed", [{"seed": 1}, {"class_word": "cat"}, {"rank": 3}, "subject", "model", "lora"])
def test_another_tuning_of_the_name_is_refused(world: World, changed: Any) -> None:
    world.tune(steps=1)
    kept = tensors(world.loras / "rex.safetensors")
    if changed == "subject":
        world.subject = random_subject(seed=50)
    elif changed == "model":
        world.model = tiny_model("sd1", seed=9)
    elif changed == "lora":
        world.model, _ = nodes.LoraLoader().load_lora(world.model, None, "rex.safetensors", 0.5, 0.5)
    with pytest.raises(ValueError, match="name 'rex' is taken"):
        world.tune(**{"steps": 1, **(changed if isinstance(changed, dict) else {})})
    left = tensors(world.loras / "rex.safetensors")
    assert all(torch.equal(left[name], kept[name]) for name in kept)


def test_a_strangers_lora_of_the_name_is_not_overwritten(world: World) -> None:
    (world.loras / "rex.safetensors").write_bytes(b"somebody else's")
    with pytest.raises(ValueError, match="name 'rex' is taken"):
        world.tune(steps=1)
    assert (world.loras / "rex.safetensors").read_bytes() == b"somebody else's"


def test_a_base_with_a_lora_is_tuned_as_it_is(world: World) -> None:
    world.tune("first", steps=2)
    world.model, world.clip = nodes.LoraLoader().load_lora(world.model, world.clip, "first.safetensors", 1.0, 1.0)
    before = picture(world.model, world.clip, "a dog")
    tuned = world.tune("second", steps=2)
    wanted = picture(tuned.model, tuned.clip, "a dog embedding:second")
    stock = nodes.LoraLoader().load_lora(world.model, world.clip, "second.safetensors", 1.0, 1.0)
    assert torch.equal(picture(*stock, "a dog embedding:second"), wanted)
    assert torch.equal(picture(world.model, world.clip, "a dog"), before)
    losses = [tensors(world.own / "tuning" / n / "state.safetensors")["losses"][0] for n in ("first", "second")]
    assert losses[0] != losses[1], "it begins from what the LoRA made of the model"


# --- no trace --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, Stop])
def test_no_trace_on_model_clip_and_chance(world: World, monkeypatch: pytest.MonkeyPatch, end: Any) -> None:
    picture(world.model, world.clip, "a dog")  # loaded
    flags = [
        (name, module.training, getattr(module, "comfy_cast_weights", None), "forward" in vars(module))
        for name, module in world.model.model.named_modules()
    ]
    weights = {name: weight.clone() for name, weight in world.model.model.state_dict().items()}
    chance = torch.get_rng_state()
    if end is not None:
        stop_at(monkeypatch, 1, end)
        with pytest.raises(end):
            world.tune(steps=2)
    else:
        world.tune(steps=2)
        assert torch.is_inference_mode_enabled()
        assert torch.equal(chance, torch.get_rng_state()) or end is None
    for network in (world.model.model, world.clip.cond_stage_model):
        for module in network.modules():
            assert not getattr(module, "weight_function", [])
            assert not getattr(module, "bias_function", [])
    after = [
        (name, module.training, getattr(module, "comfy_cast_weights", None), "forward" in vars(module))
        for name, module in world.model.model.named_modules()
    ]
    assert after == flags
    assert all(torch.equal(weight, weights[name]) for name, weight in world.model.model.state_dict().items())
    assert world.model.weight_wrapper_patches == {}
    assert all(not p.requires_grad for p in world.model.model.parameters() if p.is_floating_point())


# --- bad input, bad disks --------------------------------------------------------------------------------------------

BAD_NAMES = {
    "": "empty", "   ": "empty", "../rex": "/", "a/b": "/", "a\\b": r"\\", "C:rex": ":", "CON": "device",
    "nul": "device", "Lpt1.x": "device", "COM¹": "device", ".rex": "dot", "rex.": "dot", "my rex": "spaces",
    "rex\u202etxt": "invisible", "rex\x00": "plain text", "rex(1)": r"\(", "x" * 101: "longer", "ж" * 51: "longer",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:8]))
def test_hostile_names_are_refused(world: World, name: str) -> None:
    with pytest.raises(ValueError, match=BAD_NAMES[name]) as refusal:
        world.tune(name)
    assert len(str(refusal.value).splitlines()) == 1
    assert not list(world.base.rglob("*.safetensors"))


def test_unicode_names_work(world: World) -> None:
    tuned = world.tune("犬_Möpschen", steps=1)
    stock = nodes.LoraLoader().load_lora(world.model, world.clip, "犬_Möpschen.safetensors", 1.0, 1.0)
    prompt = f"a {tuned.subject.phrase}"
    assert torch.equal(picture(*stock, prompt), picture(tuned.model, tuned.clip, prompt))
    assert not torch.equal(picture(*stock, "a dog"), picture(*stock, prompt))
    assert checked_name("e\u0301") == "\u00e9", "one spelling of one name"


@pytest.mark.parametrize(
    ("word", "sentence"), [("", "empty"), ("  ", "empty"), ("embedding:x", "plain"), ("dog " * 90, "long")]
)
def test_bad_class_words_are_refused(world: World, word: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        world.tune(class_word=word)


def test_brackets_in_a_class_word_are_letters(world: World) -> None:
    assert world.tune(class_word="dog (small)", steps=1).subject.class_word == "dog (small)"


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(world: World) -> None:
    world.tune(steps=2)  # the regular pictures are there, and a state of 2 steps
    kept = {path: path.read_bytes() for path in world.base.rglob("*.safetensors")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="disk is full"):
            world.tune(steps=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in world.base.rglob("*.safetensors")} == kept
    assert not list(world.base.rglob("*.unfinished"))
    world.tune(steps=4)
    world.tune("whole", steps=4)
    assert same(world.loras / "rex.safetensors", world.loras / "whole.safetensors")


def test_a_folder_that_cannot_be_written_is_told_before_the_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(host_files.tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr(tune, "train", lambda job: pytest.fail("it must not come to this"))
    with pytest.raises(ValueError, match="cannot be written"):
        world.tune()


def test_too_little_memory_is_a_sentence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 1, torch.cuda.OutOfMemoryError)
    with pytest.raises(ValueError, match="turn gradient_checkpointing on, or turn text_encoder off") as refusal:
        world.tune(gradient_checkpointing=False)
    assert "not enough memory" in str(refusal.value)


def test_a_damaged_state_begins_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tune("whole")
    with monkeypatch.context() as killed:
        killed.setattr(Training, "keep", lambda self: "")
        stop_at(killed, 3)
        with pytest.raises(Stop):
            world.tune()
    state = world.own / "tuning" / "rex" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is taken"):
        world.tune()
    state.unlink()
    world.tune()
    (world.loras / "rex.safetensors").unlink()
    with pytest.raises(ValueError, match="trained for 4 steps already"):
        world.tune(steps=2)
    world.tune()
    assert same(world.loras / "rex.safetensors", world.loras / "whole.safetensors")


def test_what_fits_not_is_refused(world: World) -> None:
    world.subject = random_subject()
    object.__setattr__(world.subject, "latent", torch.zeros(1, 16, 8, 10))
    with pytest.raises(ValueError, match="16 channels"):
        world.tune()


@pytest.mark.parametrize(("family", "clip"), [("sd1", "sdxl"), ("sdxl", "sd1")])
def test_another_familys_clip_is_refused(tmp_path: Path, family: str, clip: str) -> None:
    with folders(tmp_path):
        world = World(tmp_path, family)
        world.clip = World(tmp_path, clip).clip
        with pytest.raises(ValueError, match=r"encodes text with width \d+, but this model needs width \d+; link"):
            world.tune()


def test_another_familys_caption_is_refused(world: World) -> None:
    world.subject = random_subject("sdxl")
    with pytest.raises(ValueError, match="the subject's caption has"):
        world.tune()


def test_settings_are_in_the_files(world: World) -> None:
    world.tune(steps=1)
    found = tuning_files.settings_of(world.loras / "rex.safetensors")
    assert found["class_word"] == "dog"
    assert found["steps"] == 1
    assert json.dumps(found)
    assert tuning_files.settings_of(world.embeddings / "rex.safetensors")["key"] == found["key"]
    assert "rights" not in found


def test_the_owners_word_is_in_the_files(world: World) -> None:
    owned = OwnedSubject(**vars(world.subject), name="rex", rights=Rights("Ada Lovelace", "posters", "2030-12-31"))
    world.subject = owned
    world.tune(steps=1)
    for folder in (world.loras, world.embeddings):
        assert tuning_files.settings_of(folder / "rex.safetensors")["rights"] == vars(owned.rights)


def test_embedding_keys_are_the_hosts() -> None:
    assert store.embedding_key("l", 1) == "emb_params"
    assert store.embedding_key("g", 2) == "clip_g"
