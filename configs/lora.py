"""Experiment 2 of Functional Task Networks: LoRA-FTN on a frozen GPT-2, six styles in a row (Table 3).

    python -m ftn_jax.main --config=configs/lora.py           # the paper's protocol, 7 seeds
    python -m ftn_jax.main --config=configs/lora.py:quick     # 1 seed on the packaged base, minutes

Paper: sections 2-3, appendices C-F. There, on distilgpt2: LoRA-FTN reconfig CE 1.51 and FM +0.07, LoRA-Fixed CE
1.39, LoRA-Naive CE 8.22 and FM +7.37 nats per target token. On the packaged base: docs/reproduction.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config(arg: str = "") -> ConfigDict:
    if arg not in ("", "quick"):
        raise ValueError(f"configs/lora.py: unknown argument {arg!r}, known: quick")
    quick = arg == "quick"
    return ConfigDict(
        {
            "experiment": "lora",
            # A count (0 ... count - 1) or a tuple of seeds.
            "seeds": FieldReference(1 if quick else 7, field_type=object),
            "methods": ("lora_ftn", "lora_fixed", "lora_bank", "lora_naive"),
            # "auto" is distilgpt2 where it can be had, else "packaged"; or a folder or hub name of any GPT-2.
            "base": "packaged" if quick else "auto",
            "model": {
                "dtype": "float32",  # of the base and all computation; or "bfloat16"
                "remat": False,  # gradient checkpointing: less memory, more time
            },
            "stream": {
                "name": "styles",
                "tasks": ("upper", "lower", "reverse_words", "double_words", "starred_vowels", "pirate"),
                "steps": 200,  # of each task
                "batch": 8,
                "max_length": 96,  # tokens of prompt and target together; longer examples are an error
            },
            "pool": {
                "name": "lora",
                "size": 576,  # H components, a 24 x 24 torus
                "rank": 4,  # r of each
                "modules": (r"attn\.c_attn",),  # regexes on full names such as h.0.attn.c_attn
                "b_std": 0.0,  # standard deviation of B's init; 0 is LoRA's standard
            },
            "configurer": {
                "k": 72,  # winners: 12.5 % of the pool
                "steps": 15,  # S
                "learning_rate": 0.5,  # eta of the mask's Adam
                "support": 16,  # labelled examples
                "jitter": 1e-6,  # noise on the logits, for the ties of untrained components
            },
            "variants": {
                "lora_ftn": {"kernel": 3, "lateral_steps": 15},  # s x s, T times
                # On components that no task has yet; T of recovery.
                "lora_ftn_reserve": {"kernel": 3, "lateral_steps": 15, "recall_steps": 2},
                "lora_bank": {"b_std": 0.02},  # the paper: "small random Gaussian"
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
