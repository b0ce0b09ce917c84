"""Mutants of pre-training, of files, and of scores."""

from __future__ import annotations

from .mutant import Mutant

CORE, OURS = "dreamtuner_core", "dreamtuner_core/pretraining"
LOOP, OBJECTIVE, CONFIG = (f"{OURS}/{name}.py" for name in ("loop", "objective", "config"))
RUNS, DRAWS = "tests/lab/test_pretraining.py", "tests/unit/test_pretraining_draws.py"
WHOLE, SUBJECT_FILE = "tests/unit/test_whole_files.py", "tests/unit/test_subject_file.py"

WRITTEN = "tests/lab/test_objective.py"

MUTANTS = [
    Mutant("EMA's decay swapped", LOOP, "lerp_(self.parameters[name].detach(), 1 - decay)",
           "lerp_(self.parameters[name].detach(), decay)", RUNS),
    Mutant("EMA as slow at the start", LOOP, "min(self.config.ema, (1 + self.step) / (10 + self.step))",
           "self.config.ema", RUNS),
    Mutant("averages are not what is used", LOOP, "return self.averages or {", "return {", RUNS),
    Mutant("parts of a batch add up", LOOP, "loss.mean() / len(parts)", "loss.mean()", RUNS),
    Mutant("gradients are not cut", LOOP, "self.parameters.values(), LARGEST_GRADIENT)",
           "self.parameters.values(), 1e9)", RUNS),
    Mutant("the rate stays at its first", LOOP, "self.config.rate(self.step)", "self.config.rate(0)", RUNS),
    Mutant("places in the stream are not taken up", LOOP, 'state["places"].clone(), None', "self.places, None", RUNS),
    Mutant("a dropped row keeps its subject", OBJECTIVE, "float(d.keeps_subject)", "1.0", WRITTEN),
    Mutant("a dropped row keeps its text", OBJECTIVE, 'caption if d.keeps_text else ""', "caption", WRITTEN),
    Mutant("text and subject fall together", OBJECTIVE,
           "(dropped < both or text <= dropped < text + config.drop_subject)", "dropped < text", DRAWS),
    Mutant("both are dropped as often as the text", OBJECTIVE, "dropped < both or ", "dropped < text or ", DRAWS),
    Mutant("one noise for all rows", OBJECTIVE, 'generator("row", config.seed, step, row)',
           'generator("row", config.seed, step, 0)', DRAWS),
    Mutant("one noise for all steps", OBJECTIVE, 'generator("row", config.seed, step, row)',
           'generator("row", config.seed, 0, row)', DRAWS),
    Mutant("latents without noise", OBJECTIVE, "latents + sigma[:, None, None, None] * noise", "latents", WRITTEN),
    Mutant("latents as the VAE gives them", OBJECTIVE, "base.scaled(latents.to(device, dtype))",
           "latents.to(device, dtype)", WRITTEN),
    Mutant("min-SNR left out", OBJECTIVE, "losses * min_snr(base.parametrisation, sigma, config.min_snr)", "losses",
           WRITTEN),
    Mutant("the same augmentation for every seed", f"{OURS}/augment.py", "torch.manual_seed(seed)",
           "torch.manual_seed(0)", DRAWS),
    Mutant("what is turned fills up with black", f"{OURS}/augment.py", "self.steps(1 - picture[None])[0]",
           "1 - self.steps(picture[None])[0]", DRAWS),
    Mutant("a checkpoint of other settings is taken up", f"{OURS}/checkpoint.py",
           "if asked.get(name) != stored.get(name):",
           "if False:", RUNS),
    Mutant("the newest checkpoints are removed", f"{OURS}/checkpoint.py", "[: -config.keep]", "[config.keep :]", RUNS),
    Mutant("written in place", f"{CORE}/files.py",
           'path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")', "path", WHOLE),
    Mutant("unfinished files stay", f"{CORE}/files.py", "left.unlink(missing_ok=True)", "pass", WHOLE),
    Mutant("what another writes is swept away", f"{CORE}/files.py", "left.stat().st_mtime >= older_than",
           "left.stat().st_mtime >= 0", WHOLE),
    Mutant("old unfinished files stay", f"{CORE}/files.py", "                        left.unlink()\n",
           "                        pass\n", WHOLE),
    Mutant("what a refused name replaced stays so", f"{CORE}/files.py", "        for path in renamed:\n",
           "        for path in ():\n", WHOLE),
    Mutant("a new file replaces another process's", f"{CORE}/files.py", "        if new:\n",
           "        if False:\n", WHOLE),
    Mutant("a state of NaN is taken up", f"{CORE}/optimizer.py", " and bool(torch.isfinite(found[name]).all())", "",
           "tests/unit/test_tuning_math.py"),
    Mutant("several files, one after the other", f"{CORE}/files.py",
           "            _write(unfinished[path], write)\n",
           "            _write(unfinished[path], write)\n            unfinished[path].replace(path)\n", WHOLE),
    Mutant("only its owner may read a file", f"{CORE}/files.py", "unfinished.chmod(mode)", "pass", WHOLE),
    Mutant("a header of any size", f"{CORE}/files.py", "if size > largest:", "if False:", WHOLE),
    Mutant("JSON of any length", f"{CORE}/files.py", "or len(text) > longest", "", WHOLE),
    Mutant("JSON of any depth", f"{CORE}/files.py", "except (ValueError, RecursionError):", "except ValueError:",
           WHOLE),
    Mutant("a subject's values beyond 0..1", f"{CORE}/saved_subject.py", "if name in tensors and not (",
           "if False and not (",
           SUBJECT_FILE),
    Mutant("NaN in a subject", f"{CORE}/saved_subject.py", "if not torch.isfinite(x).all()), None)", "if False), None)",
           SUBJECT_FILE),
    Mutant("a last day is past on that day", f"{CORE}/rights.py", "today > datetime", "today >= datetime",
           "tests/unit/test_subject_file.py"),
]  # fmt: skip
