"""Experiment 1 of Functional Task Networks: 1,024 small networks learn three conflicting tasks (Tables 1, 2 and 4).

python -m ftn_jax.main --config=configs/synthetic.py:classification          # 8 methods, 8 seeds
python -m ftn_jax.main --config=configs/synthetic.py:regression
python -m ftn_jax.main --config=configs/synthetic.py:classification,quick    # 2 seeds and fewer steps

The paper does not give the encoder's scale, activation and init. They are chosen on FixedMask and NoMask only, with
one generator for both variants: GELU, He-normal weights, a readout drawn as PyTorch's Linear, and scale 0.375. Eight
seeds (the paper in brackets): FixedMask ACC 0.957 +- 0.005 (0.938) and MSE 0.008 +- 0.002 (0.006); NoMask ACC 0.661 +-
0.005 (0.666) with FM 0.464 +- 0.008 (0.466), and MSE 0.263 +- 0.061 (0.312). A larger scale lowers FixedMask's ACC and
raises its MSE. Next best, on a pool of 128 networks and one task: SiLU at scale 0.35, 0.950 and 0.010; ReLU at 0.40
gave 0.907 and 0.037.
"""

from ml_collections import ConfigDict

_S10 = {"steps": 10, "learning_rate": 0.2}
_PROPOSALS = {
    "kept": {"moments": "kept"},
    "gradient": {"proposal": "gradient"},
    "s10": _S10,
    "gradient_s10": {"proposal": "gradient", **_S10},
}


def get_config(arg: str = "classification") -> ConfigDict:
    variant, *rest = arg.split(",")
    if variant not in ("classification", "regression") or rest not in ([], ["quick"]):
        raise ValueError(
            f"configs/synthetic.py: unknown argument {arg!r}, known: classification, regression, each with ,quick"
        )
    quick = bool(rest)
    return ConfigDict(
        {
            "seeds": 2 if quick else 8,
            "methods": ("ftn_slow", "ftn_fast", "kwta", "fixedmask", "nomask", "ewc", "supsup", "supsup_wide"),
            "stream": {
                "name": "synthetic",
                "tasks": ("first", "second", "third"),
                "target": variant,
                "steps": 100 if quick else 1000,  # of each task
            },
            # The defaults are the paper's: a 32 x 32 torus of networks of 8 layers of 8 units, dropout 0.2, k = 128
            # (12.5 %), and S = 1, eta 1 for classification.
            "pool": {"name": "neurons"},
            "configurer": _S10 if variant == "regression" else {},
            "variants": {
                # FTN with other proposals (docs/reproduction.md). S = 10 is the setting of regression.
                **{
                    f"{method}_{name}": {"method": method, "configurer": dict(settings)}
                    for method in ("ftn_slow", "ftn_fast", "kwta")
                    for name, settings in _PROPOSALS.items()
                },
            },
            "checkpoint": {"every_steps": 500},
        }
    )
