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
from ml_collections.config_dict import FieldReference

from ftn_jax.streams.text.transforms import TRANSFORMS

_PAPERS = ("lora_ftn", "lora_fixed", "lora_bank", "lora_naive")


def get_config(arg: str = "") -> ConfigDict:
    match = re.fullmatch(r"|quick|smollm2|long(?:,(\d+),(\d+))?", arg)
    if not match:
        known = "quick, smollm2, long, long,<tasks>,<seed of order>"
        raise ValueError(f"configs/lora.py: unknown argument {arg!r}, known: {known}")
    tasks, size, k = tuple(TRANSFORMS)[:6], 576, 72
    seeds, base, methods = {
        "quick": (1, "packaged", (*_PAPERS, "lora_ftn_reserve")),
        "smollm2": (3, "smollm2", ("lora_ftn", "lora_fixed", "lora_ftn_gradient", "lora_ftn_reserve", *_PAPERS[2:])),
    }.get(arg, (7, "auto", _PAPERS))
    if arg.startswith("long"):
        tasks, size, k = tuple(TRANSFORMS), 1764, 63
        if match[1]:
            if not 1 <= int(match[1]) <= len(tasks):
                raise ValueError(f"configs/lora.py: {match[1]} tasks, expected 1 to {len(tasks)}")
            tasks = tuple(random.Random(int(match[2])).sample(tasks, int(match[1])))
    return ConfigDict(
        {
            "experiment": "lora",
            # A count (0 ... count - 1) or a tuple of seeds.
            "seeds": FieldReference(seeds, field_type=object),
            "methods": methods,
            # "auto" is distilgpt2 where it can be had, else "packaged"; "smollm2" is SmolLM2-135M-Instruct; or a
            # folder, a GGUF file or a hub name of a GPT-2, Llama, Mistral, Qwen or Gemma.
            "base": base,
            "model": {
                "dtype": "float32",  # of the base and all computation; or "bfloat16"
                "remat": False,  # gradient checkpointing: less memory, more time
            },
            "stream": {
                "name": "styles",
                "tasks": tasks,  # upper, lower, reverse_words, double_words, starred_vowels, pirate; see `TRANSFORMS`
                "steps": 200,  # of each task
                "boundaries": "given",  # or "unknown": a method that reserves components finds out when tasks change
                "evaluate": "all"
                if arg in ("", "smollm2")
                else "seen",  # tasks at each boundary, or those that have been trained
                "batch": 8,
                "held_out": "test",  # sentences that are scored; or "validation", a part of the training sentences
                "max_length": 96,  # tokens of prompt and target together; longer examples are an error
            },
            "pool": {
                "name": "lora",
                "size": size,  # H components, a 24 x 24 torus; of a long stream 42 x 42
                "grow": False,  # add components where a method that reserves them finds no room for a task
                "rank": 4,  # r of each
                # "qkv" (the paper's), "all-linear", or regexes that match in all layers on full names such as
                # h.0.attn.c_attn or model.layers.0.self_attn.q_proj; one mask spans them all.
                "modules": ("qkv",),
                "b_std": 0.0,  # standard deviation of B's init; 0 is LoRA's standard
            },
            "configurer": {
                "k": k,  # winners: 12.5 % of the pool; of a long stream 3.6 %, 28 whole adapters for LoRA-Bank
                "steps": 15,  # S
                "learning_rate": 0.5,  # eta of the mask's Adam
                "support": 16,  # labelled examples
                "jitter": 1e-6,  # noise on the logits, for the ties of untrained components
                "proposal": "adam",  # the steps on mask logits; or "gradient", one scale for all of them
                "moments": "fresh",  # of Adam at each search; or "kept" from batch to batch over the run
                "start": 0.5,  # the relaxed mask before its first step
            },
            "variants": {
                "lora_ftn": {"kernel": 3, "lateral_steps": 15},  # s x s, T times
                # Found on validation sentences (docs/reproduction.md): more steps of the gradient, from a nearly empty
                # mask, B not zero, and less smoothing where a mask is recovered.
                "lora_ftn_gradient": {
                    "method": "lora_ftn",
                    "recovery_lateral_steps": 2,
                    "b_std": 0.02,
                    "configurer": {"proposal": "gradient", "steps": 40, "start": 0.05},
                },
                # On components that no task has yet.
                "lora_ftn_reserve": {"kernel": 3, "lateral_steps": 15},
                "lora_bank": {"b_std": 0.02},  # the paper: "small random Gaussian"
                "replay": {"examples": 16},  # of each earlier task, in a buffer
            },
            "optimizer": {
                "name": "adam",  # or "adamw"
                "learning_rate": 5e-4,
                "weight_decay": 0.0,  # of adamw
                "reset": True,  # fresh moments at task boundaries (Remark 2.2)
                "rows": "active",  # train the mask's rows alone; "dense" hands every row to the optimizer
            },
            "mesh": {  # devices along each axis; 0 takes what there is, seeds first
                "seed": 0,
                "data": 0,  # rows of a batch
                "pool": 1,  # components
            },
            "checkpoint": {
                "every_steps": 200,  # a run that is killed goes on from there, or from the last task's end
            },
        }
    )
