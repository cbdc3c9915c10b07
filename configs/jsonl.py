"""Your own tasks: one JSONL file each, learned one after another on a frozen language model (docs/your_own_tasks.md).

    python -m ftn_jax.main --config=configs/jsonl.py --config.stream.files="('support.jsonl','legal.jsonl')"

A line is {"prompt": ..., "completion": ...} or {"text": ...}. The settings are those of the paper's Experiment 2
(configs/lora.py), for one seed and one method.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "experiment": "jsonl",
            # A count (0 ... count - 1) or a tuple of seeds.
            "seeds": FieldReference(1, field_type=object),
            # Components that a task has are no other's; or "lora_ftn_gradient", "lora_fixed", "lora_bank", ...
            "methods": ("lora_ftn_reserve",),
            # "auto" is distilgpt2 where it can be had, else "packaged"; "smollm2" is SmolLM2-135M-Instruct; or a
            # folder, a GGUF file or a hub name of a GPT-2, Llama, Mistral, Qwen or Gemma.
            "base": "auto",
            "model": {
                "dtype": "float32",  # of the base and all computation; or "bfloat16"
                "remat": False,  # gradient checkpointing: less memory, more time
            },
            "stream": {
                "name": "jsonl",
                "files": ("examples/spoken.jsonl", "examples/headline.jsonl"),  # a task each, in this order
                "steps": 200,  # of each task
                "boundaries": "given",  # or "unknown": a method that reserves components finds out when tasks change
                "evaluate": "all",  # tasks at each boundary; or "seen": those that have been trained
                "batch": 8,
                "max_length": 128,  # tokens of prompt and completion; longer prompts lose their left end
                "long_texts": "split",  # texts without a prompt that are longer are several examples; or "cut"
                "recovery": 0.15,  # share of the lines from which masks are found again
                "test": 0.15,  # share of the lines that are held out
            },
            "pool": {
                "name": "lora",
                "size": 576,  # H components, a 24 x 24 torus: room for H / k tasks that share nothing
                "grow": False,  # add components where a method that reserves them finds no room for a task
                "rank": 4,  # r of each
                # "qkv" (the paper's), "all-linear", or regexes that match in all layers on full names such as
                # h.0.attn.c_attn or model.layers.0.self_attn.q_proj; one mask spans them all.
                "modules": ("qkv",),
                "b_std": 0.0,  # standard deviation of B's init; 0 is LoRA's standard
            },
            "configurer": {
                "k": 72,  # winners of each task
                "steps": 15,  # S
                "learning_rate": 0.5,  # eta of the mask's Adam
                "support": 8,  # labelled examples
                "jitter": 1e-6,  # noise on the logits, for the ties of untrained components
                "proposal": "adam",  # the steps on mask logits; or "gradient", one scale for all of them
                "moments": "fresh",  # of Adam at each search; or "kept" from batch to batch over the run
                "start": 0.5,  # the relaxed mask before its first step
            },
            "variants": {
                "lora_ftn": {"kernel": 3, "lateral_steps": 15},  # s x s, T times
                "lora_ftn_gradient": {  # as in configs/lora.py
                    "method": "lora_ftn",
                    "recovery_lateral_steps": 2,
                    "b_std": 0.02,
                    "configurer": {"proposal": "gradient", "steps": 40, "start": 0.05},
                },
                "lora_ftn_reserve": {"kernel": 3, "lateral_steps": 15},
                "lora_bank": {"b_std": 0.02},
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
