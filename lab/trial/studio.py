"""The trial's pictures: drawn in its own ComfyUI folder, which stays between runs, and scored with Score Pictures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dreamtuner_core.files import write_whole
from dreamtuner_core.lock import locked
from lab import workflow
from lab.demo import FAMILY, S_S_A
from lab.host import say
from lab.inside import host_tree
from lab.server import ComfyServer
from lab.trial.plan import Plan
from lab.trial.record import Record, Shot
from lab.workflow import Graph

SUBJECT, TUNED = "trial_subject", "trial_tuned"  # files in the trial's own models folder
LONGEST = 24 * 3600.0  # seconds that a tuning may take
FIRST_SEED = 1000


class Studio:
    """folder: of the trial's host, pictures and record; it stays, so that an interrupted trial goes on."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.record = Record(folder)

    def run(self) -> Record:
        """Draw what is missing. Raises ValueError where another process is drawing this very trial."""
        with locked(self.folder / "lock", "this very trial is running already; wait until it ends."):
            self.record = Record.read(self.folder)
            return self._finished()

    def _finished(self) -> Record:
        if self._missing() or any(shot.score is None for shot in self.record.shots):
            self._run()
        return self.record

    def _run(self) -> None:
        begun, models = time.monotonic(), {"checkpoints": [Path(self.plan.checkpoint)]}
        if self.plan.clip_vision:
            models["clip_vision"] = [Path(self.plan.clip_vision)]
        say(f"trial: {len(self.record.shots)} pictures are done, {len(self._missing())} to draw; starting ComfyUI")
        with ComfyServer(host_tree(), [FAMILY], models, base=self.folder / "host") as server:
            stats = server.get_json("/system_stats")
            self.record.host, self.record.device = stats["system"]["comfyui_version"], stats["devices"][0]["name"]
            self._prepare(server)
            self.record.setup = self.record.setup or time.monotonic() - begun
            self.record.write()
            if self.plan.tune:
                self._tune(server)
            self._draw(server)
            self._score(server)

    def _missing(self) -> list[tuple[str, int, int]]:
        plan = self.plan
        wanted = [
            (way, prompt, FIRST_SEED + seed)
            for way in plan.ways
            for prompt in range(len(plan.prompts))
            for seed in range(plan.seeds)
        ]
        return [shot for shot in wanted if not self.record.has(*shot)]

    # --- the steps ---------------------------------------------------------------------------------------------------

    def _prepare(self, server: ComfyServer) -> None:
        """Encode the references and save the subject, with its rights, to a file."""
        if (self.folder / "host" / "models" / "subjects" / f"{SUBJECT}.safetensors").is_file():
            return
        base = workflow.api_form(workflow.load("one_picture"), server.object_info())
        graph, subjects = self._loader(), []
        encode = {k: v for k, v in workflow.node(base, "Encode Subject Image").items() if not isinstance(v, list)}
        encode |= {"resolution": self.plan.side, "vae": ["checkpoint", 2], "caption": ["caption", 0]}
        graph["caption"] = _node("CLIPTextEncode", text=self._caption(), clip=["checkpoint", 1])
        for i, path in enumerate(self.plan.references):
            graph[f"image{i}"] = _node("LoadImage", image=server.upload_image(Path(path), f"reference{i}.png"))
            mask = {"mask": [f"image{i}", 1]} if _cut_out(path) else {}  # without a mask the subject is found
            graph[f"subject{i}"] = _node("DreamTunerEncodeSubjectImage", image=[f"image{i}", 0], **mask, **encode)
            graph[f"seen{i}"] = _node("PreviewImage", images=[f"subject{i}", 1])
            subjects.append([f"subject{i}", 0])
        rights = {"owner": self.plan.owner, "allowed_uses": self.plan.uses, "until": self.plan.until}
        graph["save"] = _node("DreamTunerSaveSubject", subject=_combined(graph, subjects), name=SUBJECT, **rights)
        result = server.queue(graph)
        for i in range(len(subjects)):
            self._keep(server.images(result, f"seen{i}")[0], f"seen{i}.png")

    def _tune(self, server: ComfyServer) -> None:
        if (self.folder / "host" / "models" / "loras" / f"{TUNED}.safetensors").is_file():
            return
        graph = self._loader() | {"subject": _node("DreamTunerLoadSubject", file=f"{SUBJECT}.safetensors")}
        asked = {"class_word": self.plan.class_word, "name": TUNED, "steps": self.plan.tune, "seed": 0}
        graph["tune"] = _node("DreamTunerSubjectTuning", subject=["subject", 0], **_model(), **asked)
        graph["report"] = _node("PreviewImage", images=["tune", 3])
        begun = time.monotonic()
        result = server.queue(graph, _counted("tuning"), LONGEST)
        self.record.tuning = time.monotonic() - begun
        self._keep(server.images(result, "report")[0], "tuning.png")
        self.record.write()

    def _draw(self, server: ComfyServer) -> None:
        missing, info, started = self._missing(), server.object_info(), set[str]()
        for number, (way, prompt, seed) in enumerate(missing, start=1):
            graph = self._graph(info, way, prompt, seed)
            begun = time.monotonic()
            result = server.queue(graph, timeout=LONGEST)
            seconds, file = time.monotonic() - begun, f"{way}_{prompt + 1}_{seed}.png"
            self._keep(server.images(result, workflow.node_id(graph, "Save Image"))[0], file)
            self.record.shots.append(Shot(way, prompt, seed, file, seconds, way not in started))
            started.add(way)
            self._look_at_memory(server)
            self.record.write()
            say(f"trial: picture {number} of {len(missing)} ({way}, prompt {prompt + 1}): {seconds:.1f} s")

    def _score(self, server: ComfyServer) -> None:
        """Score prompt by prompt, because the model's keys rank only pictures of one setting."""
        for prompt in range(len(self.plan.prompts)):
            shots = [shot for shot in self.record.shots if shot.prompt == prompt]
            if all(shot.score for shot in shots):
                continue
            say(f"trial: scoring prompt {prompt + 1} of {len(self.plan.prompts)}")
            graph = self._loader() | {"subject": _node("DreamTunerLoadSubject", file=f"{SUBJECT}.safetensors")}
            images: list[Any] = []
            for i, shot in enumerate(shots):
                name = server.upload_image(self.folder / shot.file)
                graph[f"shot{i}"] = _node("LoadImage", image=name)
                if images:
                    graph[f"batch{i}"] = _node("ImageBatch", image1=images, image2=[f"shot{i}", 0])
                images = [f"batch{i}" if images else f"shot{i}", 0]
            asked = {"images": images, "subject": ["subject", 0]} | self._judge(graph)
            graph["score"] = _node("DreamTunerScorePictures", **asked)
            graph["scores"] = _node("PreviewAny", source=["score", 4])
            scores = json.loads(server.queue(graph, timeout=LONGEST).outputs["scores"]["text"][0])
            for figures in scores["pictures"]:
                shots[figures["picture"] - 1].score = figures
            self.record.write()

    def _keep(self, picture: Image.Image, file: str) -> None:
        write_whole(self.folder / file, lambda path: picture.save(path, "PNG"))

    # --- graphs ------------------------------------------------------------------------------------------------------

    def _loader(self) -> Graph:
        return {"checkpoint": _node("CheckpointLoaderSimple", ckpt_name=Path(self.plan.checkpoint).name)}

    def _caption(self) -> str:
        return f"a {self.plan.class_word}"

    def _judge(self, graph: Graph) -> dict[str, Any]:
        if not self.plan.clip_vision:
            return {"model": ["checkpoint", 0], "vae": ["checkpoint", 2]}
        graph["tower"] = _node("CLIPVisionLoader", clip_name=Path(self.plan.clip_vision).name)
        return {"clip_vision": ["tower", 0], "min_likeness": self.plan.min_likeness}

    def _graph(self, info: Mapping[str, Any], way: str, prompt: int, seed: int) -> Graph:
        """The shipped workflow for one picture, with the subject's file; for the way "before", without the pack."""
        plan, graph = self.plan, workflow.api_form(workflow.load("one_picture"), info)
        workflow.node(graph, "Load Checkpoint")["ckpt_name"] = Path(plan.checkpoint).name
        workflow.node(graph, "Empty Latent Image").update(width=plan.side, height=plan.side)
        workflow.node(graph, "Negative prompt")["text"] = plan.negative
        sampling = {name: getattr(plan, name) for name in ("steps", "cfg", "sampler_name", "scheduler")}
        workflow.node(graph, "KSampler").update(seed=seed, **sampling)
        workflow.node(graph, "Prompt")["text"] = self._prompt(way, prompt)
        if way == "before":
            return _reached(workflow.without(graph, S_S_A))
        graph["subject"] = _node("DreamTunerLoadSubject", file=f"{SUBJECT}.safetensors")
        _relink(graph, [workflow.node_id(graph, "Encode Subject Image"), 0], ["subject", 0])
        if way == "tuned":
            loader = workflow.node_id(graph, "Load Checkpoint")
            for slot in (0, 1):
                _relink(graph, [loader, slot], ["lora", slot])
            both = {"model": [loader, 0], "clip": [loader, 1], "strength_model": 1.0, "strength_clip": 1.0}
            graph["lora"] = _node("LoraLoader", lora_name=f"{TUNED}.safetensors", **both)
        return _reached(graph)

    def _prompt(self, way: str, prompt: int) -> str:
        text, word = self.plan.prompts[prompt], self.plan.class_word
        if way != "tuned":
            return text
        return re.sub(rf"\b{re.escape(word)}\b", rf"\g<0> embedding:{TUNED}", text, flags=re.IGNORECASE)

    def _look_at_memory(self, server: ComfyServer) -> None:
        stats = server.get_json("/system_stats")["devices"][0]
        if stats["type"] != "cpu":
            self.record.gpu_memory = max(self.record.gpu_memory, stats["vram_total"] - stats["vram_free"])
        assert server.process is not None
        try:
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            self.record.memory = max(self.record.memory, int(peak.split()[1]) * 1024)
        except (OSError, StopIteration):
            self.record.memory = 0  # this system has no /proc


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def _model() -> dict[str, Any]:
    return {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}


def _combined(graph: Graph, subjects: list[list[Any]]) -> list[Any]:
    """One subject of all of them; in several nodes, because one node takes four."""
    while len(subjects) > 1:
        some, rest, name = subjects[:4], subjects[4:], f"combine{len(subjects)}"
        graph[name] = _node("DreamTunerCombineSubjects", **{f"subject_{i}": s for i, s in enumerate(some, start=1)})
        subjects = [[name, 0], *rest]
    return subjects[0]


def _relink(graph: Graph, old: list[Any], new: list[Any]) -> None:
    for node in graph.values():
        node["inputs"].update({name: new for name, value in node["inputs"].items() if value == old})


def _reached(graph: Graph) -> Graph:
    """Only the nodes that the saved picture needs."""
    found, waiting = set[str](), [workflow.node_id(graph, "Save Image")]
    while waiting:
        found.add(key := waiting.pop())
        waiting += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
    return {key: graph[key] for key in graph if key in found}


def _cut_out(path: str) -> bool:
    with Image.open(path) as picture:
        return "A" in picture.getbands() and min(picture.getchannel("A").tobytes()) < 255


def _counted(what: str) -> Callable[[str, int, int], None]:
    """Print every tenth step, because a tuning has hundreds."""

    def show(node: str, done: int, steps: int) -> None:
        if steps and (done == steps or done % max(1, steps // 10) == 0):
            say(f"trial: {what} {done} of {steps}")

    return show


def sizes(folder: Path) -> int:
    """Bytes of the trial's files, without links."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
