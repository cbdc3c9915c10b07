"""The paper's numbers, Tables 1 to 5 of *Functional Task Networks*, as data; each pair is (mean, std)."""

# Tables 1 to 3, keyed by experiment: `methods[name][protocol]` holds `final` (ACC, MSE or CE) and `fm`.
MAIN = {
    "classification": {
        "number": "Table 1",
        "seeds": 8,
        "base": None,
        "decimals": 3,
        "methods": {
            "nomask": {"reconfig": {"final": (0.666, 0.031), "fm": (0.466, 0.046)}},
            "fixedmask": {"reconfig": {"final": (0.938, 0.014), "fm": (0.000, 0.000)}},
            "kwta": {"reconfig": {"final": (0.640, 0.062), "fm": (0.152, 0.052)}},
            "ftn_fast": {"reconfig": {"final": (0.899, 0.037), "fm": (0.042, 0.045)}},
            "ftn_slow": {"reconfig": {"final": (0.896, 0.025), "fm": (0.014, 0.025)}},
            "ewc": {"reconfig": {"final": (0.665, 0.031), "fm": (0.463, 0.046)}},
            "supsup": {"reconfig": {"final": (0.645, 0.028), "fm": (0.000, 0.000)}},
            "supsup_wide": {"reconfig": {"final": (0.660, 0.020), "fm": (0.000, 0.000)}},
        },
    },
    "regression": {
        "number": "Table 2",
        "seeds": 8,
        "base": None,
        "decimals": 3,
        "methods": {
            "nomask": {"reconfig": {"final": (0.312, 0.050), "fm": (0.054, 0.071)}},
            "fixedmask": {"reconfig": {"final": (0.006, 0.002), "fm": (0.000, 0.000)}},
            "kwta": {"reconfig": {"final": (0.589, 0.316), "fm": (0.028, 0.038)}},
            "ftn_fast": {"reconfig": {"final": (0.126, 0.057), "fm": (0.013, 0.017)}},
            "ftn_slow": {"reconfig": {"final": (0.167, 0.075), "fm": (0.003, 0.007)}},
            "ewc": {"reconfig": {"final": (0.311, 0.050), "fm": (0.054, 0.071)}},
            "supsup": {"reconfig": {"final": (0.206, 0.029), "fm": (0.000, 0.000)}},
            "supsup_wide": {"reconfig": {"final": (0.216, 0.027), "fm": (0.101, 0.123)}},
        },
    },
    "lora": {
        "number": "Table 3",
        "seeds": 7,
        "base": "distilgpt2",
        "decimals": 2,
        "methods": {
            "lora_naive": {
                "stored": {"final": (8.22, 0.42), "fm": (7.37, 0.50)},
                "reconfig": {"final": (8.22, 0.42), "fm": (7.37, 0.50)},
            },
            "lora_fixed": {
                "stored": {"final": (1.39, 0.09), "fm": (0.00, 0.00)},
                "reconfig": {"final": (1.39, 0.09), "fm": (0.00, 0.00)},
            },
            "lora_bank": {
                "stored": {"final": (1.49, 0.22), "fm": (0.11, 0.30)},
                "reconfig": {"final": (1.42, 0.09), "fm": (0.04, 0.11)},
            },
            "lora_ftn": {
                "stored": {"final": (1.71, 0.16), "fm": (0.34, 0.11)},
                "reconfig": {"final": (1.51, 0.08), "fm": (0.07, 0.03)},
            },
        },
    },
}

# Table 4: drops (ACC) and excesses (MSE) against FixedMask, means over prior tasks and seeds.
DECOMPOSITION = {
    "classification": {
        "fixedmask_final": 0.939,
        "nomask": {"overlap": 0.430, "recall": 0.000},
        "ewc": {"overlap": 0.428, "recall": 0.000},
        "kwta": {"overlap": 0.154, "recall": 0.131},
        "ftn_fast": {"overlap": 0.016, "recall": 0.010},
        "ftn_slow": {"overlap": -0.004, "recall": 0.021},
    },
    "regression": {
        "fixedmask_final": 0.006,
        "nomask": {"overlap": 0.461, "recall": 0.000},
        "ewc": {"overlap": 0.459, "recall": 0.000},
        "kwta": {"overlap": 0.272, "recall": 0.267},
        "ftn_fast": {"overlap": 0.098, "recall": 0.032},
        "ftn_slow": {"overlap": 0.110, "recall": 0.022},
    },
}

# The oracles that a decomposition compares with.
REFERENCES = ("fixedmask", "lora_fixed")

# Table 5: |m_i n m_j| / k of LoRA-FTN's training-time masks.
OVERLAP = {
    "tasks": ("upper", "lower", "reverse_words", "double_words", "starred_vowels", "pirate"),
    "pairs": {
        ("upper", "lower"): 0.36,
        ("reverse_words", "double_words"): 0.24,
        ("starred_vowels", "pirate"): 0.18,
        ("lower", "pirate"): 0.06,
    },
    "other_pairs": 0.00,
}

# The paper's number for each figure of the report.
FIGURES = {
    "classification": {"masks": "Figure 1"},
    "lora": {"matrices": "Figure 2", "forgetting": "Figure 3", "masks": "Figure 4"},
}

METHOD_NAMES = {
    "nomask": "NoMask",
    "fixedmask": "FixedMask",
    "kwta": "KWTA",
    "kwta_kept": "KWTA, kept moments",
    "kwta_gradient": "KWTA, gradient",
    "kwta_s10": "KWTA, S = 10",
    "kwta_gradient_s10": "KWTA, gradient, S = 10",
    "ftn_fast": "FTN-Fast",
    "ftn_fast_kept": "FTN-Fast, kept moments",
    "ftn_fast_gradient": "FTN-Fast, gradient",
    "ftn_fast_s10": "FTN-Fast, S = 10",
    "ftn_fast_gradient_s10": "FTN-Fast, gradient, S = 10",
    "ftn_slow": "FTN-Slow",
    "ftn_slow_kept": "FTN-Slow, kept moments",
    "ftn_slow_gradient": "FTN-Slow, gradient",
    "ftn_slow_s10": "FTN-Slow, S = 10",
    "ftn_slow_gradient_s10": "FTN-Slow, gradient, S = 10",
    "ftn_reserve": "FTN-Reserve",
    "ewc": "EWC",
    "supsup": "SupSup",
    "supsup_wide": "SupSup-Wide",
    "supsup_weights": "SupSup, weights",
    "supsup_weights_wide": "SupSup-Wide, weights",
    "lora_naive": "LoRA-Naive",
    "lora_fixed": "LoRA-Fixed",
    "lora_bank": "LoRA-Bank",
    "lora_ftn": "LoRA-FTN",
    "lora_ftn_gradient": "LoRA-FTN, gradient",
    "ftn_compose": "FTN-Compose",
    "lora_ftn_compose": "LoRA-FTN-Compose",
    "lora_ftn_reserve": "LoRA-FTN-Reserve",
    "o_lora": "O-LoRA",
    "hat": "HAT",
    "packnet": "PackNet",
    "replay": "Replay",
    "joint": "Joint",
    "icl": "In-context learning",
}
