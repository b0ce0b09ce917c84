"""Mutants of subject tuning: what was once planted there, and lived."""

from __future__ import annotations

from .mutant import Mutant

NUMBERS, LOOP = "tests/host/test_tuning_numbers.py", "tests/unit/test_tuning_math.py"
CORE, HOST = "dreamtuner_core/tuning", "dreamtuner_core/host/tuning"

MUTANTS = [
    Mutant(
        "one noise for both rows",
        f"{CORE}/pairs.py",
        "noise=torch.randn(2, *self.reference.shape[1:], generator=chance)",
        "noise=torch.randn(1, *self.reference.shape[1:], generator=chance).expand(2, -1, -1, -1)",
        NUMBERS,
    ),
    Mutant("one level for both rows", f"{CORE}/pairs.py", "(2,), generator=chance),\n            noise",
           "(1,), generator=chance).expand(2),\n            noise", NUMBERS),
    Mutant("the reference flipped upside down", f"{HOST}/regular.py", "picture.flip(2)", "picture.flip(1)", NUMBERS),
    Mutant("the mask flipped upside down", f"{HOST}/pairs.py", "mask.flip(-1)", "mask.flip(-2)", NUMBERS),
    Mutant("the mask not flipped", f"{HOST}/pairs.py", "mask.flip(-1)", "mask", NUMBERS),
    Mutant(
        "the regular row with the reference's pooled text",
        "dreamtuner_core/host/calls.py",
        '"pooled_output": text.pooled}',
        '"pooled_output": texts[0].pooled}',
        NUMBERS,
    ),
    Mutant("all LoRA pairs drawn alike", f"{HOST}/adapters.py", 'generator("lora", seed, key)',
           'generator("lora", seed)', NUMBERS),
    Mutant("S*'s rate without the encoder's scale", f"{HOST}/train.py", "config.word_rate * scale",
           "config.word_rate", NUMBERS),
    Mutant("job key without clip skip", f"{HOST}/job.py", ", self.clip.layer_idx)", ")", NUMBERS),
    Mutant("job key without the VAE", f"{HOST}/job.py", "fingerprint.of_network(self.vae.first_stage_model), ", "",
           NUMBERS),
    Mutant("regular pictures' key without the VAE", f"{HOST}/regular.py",
           "key.add(fingerprint.of_network(vae.first_stage_model), ", "key.add(", NUMBERS),
    Mutant("memory asked without moments", f"{HOST}/train.py", "3 * 4 * learned", "4 * learned", NUMBERS),
    Mutant("equal sample seeds", f"{HOST}/store.py", "SAMPLE_SEEDS = (1, 2)", "SAMPLE_SEEDS = (1, 1)", NUMBERS),
    Mutant("subject key without noise seed", "dreamtuner_core/host/fingerprint.py",
           "subject.picture, subject.latent, subject.noise_seed", "subject.picture, subject.latent", NUMBERS),
    Mutant("target of v without its scale", f"{CORE}/losses.py", " / torch.sqrt(1 + sigma**2)", "", LOOP),
    Mutant("min-SNR of eps as of v", f"{CORE}/losses.py", "(snr if parametrisation == EPS else snr + 1)", "(snr + 1)",
           LOOP),
    Mutant("the prior's weight on the reference", f"{CORE}/losses.py",
           "weighted[0] + prior_weight * weighted[1:].sum()", "prior_weight * weighted[0] + weighted[1:].sum()", LOOP),
    Mutant("accumulated, not averaged", f"{CORE}/loop.py", "(loss / self.config.accumulation).backward()",
           "loss.backward()", LOOP),
    Mutant("no warm-up", f"{CORE}/loop.py", "rate * warm_up(self.step)", "rate", LOOP),
    Mutant("mask counted over channels too", f"{CORE}/losses.py", "(counted.sum() * square.shape[1])",
           "(counted.sum())", LOOP),
    Mutant("a draw that forgets its part", f"{CORE}/pairs.py", 'generator("pair", seed, step, part)',
           'generator("pair", seed, step)', LOOP),
    Mutant("moments of a state not taken up", "dreamtuner_core/optimizer.py", "optimizer.state[parameter] = {",
           "_ = {", LOOP),
    Mutant("an embedding of a wrong spelling passes", "dreamtuner_core/host/mentions.py", "if read in (name,",
           "if read.casefold() in (name,", "tests/host/test_mentions.py"),
    Mutant("any seed is saved", "dreamtuner_core/saved_subject.py", "or not 0 <= self.noise_seed < 2**64", "",
           "tests/unit/test_subject_file.py"),
]  # fmt: skip
