"""Experiment 2 of Functional Task Networks: LoRA-FTN on a frozen language model, six styles in a row (Table 3).

    python -m ftn_jax.main --config=configs/lora.py           # the paper's protocol, 7 seeds
    python -m ftn_jax.main --config=configs/lora.py:quick     # 1 seed on the packaged base, minutes
    python -m ftn_jax.main --config=configs/lora.py:smollm2   # 3 seeds on SmolLM2-135M-Instruct, a day on a CPU
    python -m ftn_jax.main --config=configs/lora.py:long      # a stream of 24 tasks
    python -m ftn_jax.main --config=configs/lora.py:long,12,3 # 12 of them in an order drawn with seed 3

Paper: sections 2-3, appendices C-F. There, on distilgpt2: LoRA-FTN reconfig CE 1.51 and FM +0.07, LoRA-Fixed CE
1.39, LoRA-Naive CE 8.22 and FM +7.37 nats per target token. On the packaged base: docs/reproduction.md.
"""

import random
import re

from ml_collections import ConfigDict

from ftn_jax.streams.text.transforms import TRANSFORMS

_PAPERS = ("lora_ftn", "lora_fixed", "lora_bank", "lora_naive")
_SMOLLM2 = ("lora_ftn", "lora_fixed", "lora_ftn_gradient", "lora_ftn_reserve", "lora_bank", "lora_naive")


def get_config(arg: str = "") -> ConfigDict:
    match = re.fullmatch(r"|quick|smollm2|long(?:,(\d+),(\d+))?", arg)
    if not match:
        known = "quick, smollm2, long, long,<tasks>,<seed of order>"
        raise ValueError(f"configs/lora.py: unknown argument {arg!r}, known: {known}")
    # quick and long score only the tasks seen so far, which halves the time of evaluation.
    seeds, base, methods, evaluate = {
        "": (7, "auto", _PAPERS, "all"),
        "quick": (1, "packaged", (*_PAPERS, "lora_ftn_reserve"), "seen"),
        "smollm2": (3, "smollm2", _SMOLLM2, "all"),
    }.get(arg, (7, "auto", _PAPERS, "seen"))
    config = ConfigDict(
        {
            "seeds": seeds,
            "methods": methods,
            "base": base,
            # upper, lower, reverse_words, double_words, starred_vowels, pirate
            "stream": {"name": "styles", "tasks": tuple(TRANSFORMS)[:6], "evaluate": evaluate},
            # The defaults are the paper's: a 24 x 24 torus of pairs of rank 4 on qkv, k = 72 (12.5 %), S = 15, eta 0.5,
            # smoothing 3 x 3, 15 times.
            "pool": {"name": "lora"},
            "variants": {
                # Found on validation sentences (docs/reproduction.md): more gradient steps, from a nearly empty mask, a
                # B that is not zero, and less smoothing at recovery.
                "lora_ftn_gradient": {
                    "method": "lora_ftn",
                    "recovery_lateral_steps": 2,
                    "b_std": 0.02,
                    "configurer": {"proposal": "gradient", "steps": 40, "start": 0.05},
                },
                "replay": {"examples": 16},  # kept from each earlier task
            },
        }
    )
    if arg.startswith("long"):
        config.stream.tasks = tuple(TRANSFORMS)
        config.pool.size = 1764  # a 42 x 42 torus
        config.configurer = ConfigDict({"k": 63})  # 3.6 % of the pool: 28 whole adapters for LoRA-Bank
    if match[1]:
        tasks = config.stream.tasks
        if not 1 <= int(match[1]) <= len(tasks):
            raise ValueError(f"configs/lora.py: {match[1]} tasks, expected 1 to {len(tasks)}")
        config.stream.tasks = tuple(random.Random(int(match[2])).sample(tasks, int(match[1])))
    return config
