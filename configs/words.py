"""Many small tasks in one stream: a folder of JSONL files, by default 24 published tasks of words.

    python -m ftn_jax.main --config=configs/words.py --config.stream.files=FOLDER        # all its tasks, by name
    python -m ftn_jax.main --config=configs/words.py:12,3 --config.stream.files=FOLDER   # 12, in an order of seed 3

The 24 tasks are those of Todd et al., Function Vectors in Large Language Models (ICLR 2024). They do not come with this
package; docs/your_own_tasks.md says how to get them. The same word has another answer in another task (antonym, French,
upper case, the next letter), and nothing in a prompt says which is meant. A line has about ten tokens. To compare, add
--config.methods="('lora_ftn_reserve','lora_fixed','lora_bank','o_lora','lora_naive','icl')".
"""

import re

from ml_collections import ConfigDict

_SOURCE = (
    "the 24 tasks of words are by Todd et al., Function Vectors in Large Language Models, ICLR 2024, MIT licence: "
    "folder dataset_files of https://github.com/ericwtodd/function_vectors; write each as a .jsonl file with lines "
    'such as {"prompt": "flawed\\n", "completion": "perfect"}, and name their folder: --config.stream.files=FOLDER'
)


def get_config(arg: str = "") -> ConfigDict:
    match = re.fullmatch(r"|([1-9]\d*),(\d+)", arg)
    if not match:
        raise ValueError(f"configs/words.py: unknown argument {arg!r}, known: <tasks>,<seed of order>")
    return ConfigDict(
        {
            "methods": ("lora_ftn_reserve",),  # each task owns its components
            "base": "smollm2",  # SmolLM2-135M-Instruct
            "stream": {
                "name": "jsonl",
                "files": ("words",),  # a folder: all its .jsonl files in alphabetical order; or a tuple of files
                "drawn": (int(match[1]), int(match[2])) if match[1] else (0, 0),
                "source": _SOURCE,
            },
            "pool": {"name": "lora"},  # 576 components of rank 2: room for 72 disjoint tasks of k = 8
        }
    )
