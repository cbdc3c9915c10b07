"""A method, a pool, a stream and a family of bases of your own: `python examples/own_parts.py [workdir]`.

It is also a config file: `python -m ftn_jax.main --config=examples/own_parts.py --config.stream.steps=50`.

The tasks of the stream ask on which side of a line a point lies, each for another line. The components of the pool are
single waves. The method is FTN, except that it never installs a mask on a component that an earlier task has trained,
as long as k others are left; tasks then can't disturb each other (Theorem 2.1), and with the stored masks nothing is
forgotten. The family is EXAONE 3, a Llama with other names. `check` tests each part against the contract that the
package's own parts fulfil.
"""

import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import ftn_jax
from ftn_jax import rules
from ftn_jax.models.families import FAMILIES, REQUIRED
from ftn_jax.testing import check_family, check_method, check_pool, check_stream

# --- a stream: tasks whose data are pure functions of a key -------------------------------------------------------


@flax.struct.dataclass
class HalfPlane:
    """Whether a point lies on the left of a line through zero."""

    normal: jax.Array  # f32[2]
    held_out: int = flax.struct.field(pytree_node=False)  # test examples

    def batch(self, key, size):
        return self._draw(jax.random.fold_in(key, 0), size)

    def support(self, key, size):
        return self._draw(jax.random.fold_in(key, 1), size)

    def test(self):
        return self._draw(jax.random.key(0), self.held_out)

    def _draw(self, key, size):
        x = jax.random.normal(key, (size, 2))
        return ftn_jax.PointBatch(x, (x @ self.normal > 0).astype(jnp.int32))


def half_planes(context, names, *, test):
    """Lines rotated by equal angles. Every seed sees the same tasks, so the stream has no seed axis."""
    angles = 2 * np.pi * np.arange(len(names)) / len(names)
    normals = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)
    return ftn_jax.Stream(tuple(names), [HalfPlane(normal, test) for normal in normals], "accuracy", ftn_jax.Spec(2, 2))


# --- a pool: params with the component axis first, losses under a mask --------------------------------------------


@flax.struct.dataclass
class WavePool(ftn_jax.Pool):
    """y = sum_h m_h v_h sin(w_h x + b_h). A pool has `init`, `example_losses` and `metrics`; the rest follows."""

    size: int = flax.struct.field(pytree_node=False)  # H
    frequency: float = flax.struct.field(pytree_node=False)  # standard deviation of w

    def init(self, key):
        keys = jax.random.split(key, 3)
        return {
            "w": self.frequency * jax.random.normal(keys[0], (self.size, 2)),
            "b": jax.random.uniform(keys[1], (self.size,), maxval=2 * np.pi),
            "v": 0.1 * jax.random.normal(keys[2], (self.size, 2)),  # to two classes
        }

    def example_losses(self, params, routing, batch, key=None):
        if jnp.issubdtype(routing.dtype, jnp.integer):  # active components, [k] or [B, k]
            routing = jax.nn.one_hot(routing, self.size).sum(-2)
        log_p = jax.nn.log_softmax(self._answer(params, jnp.atleast_2d(routing), batch.x))
        return -jnp.take_along_axis(log_p, batch.y[:, None], axis=1)[:, 0], jnp.ones(len(batch.y))

    def metrics(self, params_k, batch):
        hits = self._answer(params_k, jnp.ones((1, len(params_k["b"]))), batch.x).argmax(1) == batch.y
        return {"accuracy": (hits.sum().astype(jnp.float32), jnp.float32(hits.size))}

    def _answer(self, params, masks, x):
        return (masks * jnp.sin(x @ params["w"].T + params["b"][None])) @ params["v"]


def waves(context, stream, *, size, frequency):
    if stream.metric != "accuracy":
        raise ftn_jax.InputError(f"config.pool.name is 'waves', expected another for {stream.metric}")
    return WavePool(size=size, frequency=frequency)


# --- a method: a record of functions ------------------------------------------------------------------------------


def ftn_apart(configurer, *, kernel, lateral_steps):
    """FTN that installs masks only on components that are not trained yet; recovery may choose any component."""

    def find(pool, params, support, bias):
        proposal = ftn_jax.smooth_kwta(
            pool.mask_loss(params, support),
            pool.size,
            k=configurer.k,
            kernel=kernel,
            lateral_steps=lateral_steps,
            steps=configurer.steps,
            learning_rate=configurer.learning_rate,
            bias=bias,
        )
        return ftn_jax.Selection(proposal.active)

    def init(pool, params, key):
        return params, {"born": jax.tree.map(jnp.copy, params)}

    def install(pool, params, extra, given):
        changed = jax.tree.map(lambda now, born: (now != born).reshape(pool.size, -1).any(1), params, extra["born"])
        trained = jnp.stack(jax.tree.leaves(changed)).any(0)
        return find(pool, params, given.support, jnp.where(trained, -jnp.inf, 0.0))

    def select(pool, params, extra, given):
        return find(pool, params, given.support, None)

    return ftn_jax.Method(select, install=install, init=init)


# --- a family of bases: how its checkpoints are written -----------------------------------------------------------

LLAMA = FAMILIES["llama"]
EXAONE = LLAMA._replace(
    keys={**LLAMA.keys, "layers": ("num_layers", REQUIRED), "norm_epsilon": ("layer_norm_epsilon", 1e-5)},
    activation=("activation_function", "silu"),
    linears={
        "q": "attn.attention.q_proj",
        "k": "attn.attention.k_proj",
        "v": "attn.attention.v_proj",
        "o": "attn.attention.out_proj",
        "gate": "mlp.c_fc_0",
        "up": "mlp.c_fc_1",
        "down": "mlp.c_proj",
    },
    norms={"attn_norm": "ln_1", "mlp_norm": "ln_2"},
    embed="wte",
    norm="ln_f",
    blocks="h.{}",
    prefix="transformer.",
    named="transformer.h.{}",
    bias_keys={},
    start="tokenizer",
    allowed={"tie_word_embeddings": (False, True), "embed_dropout": (0.0,)},
)
SMALL_EXAONE = {  # the config.json of a small one
    "model_type": "exaone",
    "vocab_size": 53,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "embed_dropout": 0.0,
    "rope_theta": 500000,
}


# Registered on import, so that they are available wherever this file is imported or named with --import.
ftn_jax.register_stream("half_planes", half_planes, {"stream.test": rules.COUNT}, defaults={"stream.test": 1000})
ftn_jax.register_pool("waves", waves, {"pool.frequency": rules.POSITIVE})
ftn_jax.register_method("ftn_apart", ftn_apart, {"kernel": rules.ODD, "lateral_steps": rules.whole(0)})
ftn_jax.register_family("exaone", EXAONE)


# --- tests of the contracts -----------------------------------------------------------------------------


def check():
    """Raises AssertionError, with a line that says what is wrong, if a part breaks its contract."""
    stream = half_planes(None, ("east", "north-west", "south-west"), test=100)
    pool = WavePool(size=81, frequency=1.0)
    configurer = ftn_jax.Configurer(k=24, steps=1, learning_rate=1.0, jitter=0.0, tasks=3)
    check_stream(stream)
    check_pool(pool, stream.tasks[0].test())
    check_method(ftn_apart(configurer, kernel=3, lateral_steps=2), pool, stream)
    check_family(SMALL_EXAONE)


# --- a run --------------------------------------------------------------------------------------------------------


def get_config():
    """The settings that differ from the defaults. A part's own settings are checked by the rules it registered."""
    return ConfigDict(
        {
            "seeds": 2,
            "methods": ("ftn_apart", "ftn_slow", "nomask"),
            "stream": {
                "name": "half_planes",
                "tasks": ("east", "north-west", "south-west"),
                "steps": 100,
                "batch": 64,
            },
            "pool": {"name": "waves", "size": 81, "frequency": 1.0},
            "configurer": {"k": 24, "steps": 1, "learning_rate": 1.0, "support": 256, "jitter": 0.0},
            "variants": {
                "ftn_apart": {"kernel": 3, "lateral_steps": 2},
                "ftn_slow": {"kernel": 3, "lateral_steps": 2, "every": "task"},
            },
            "optimizer": {"learning_rate": 0.02},
        }
    )


def main(workdir):
    check()
    print("All four parts keep their contracts.")
    results = ftn_jax.train_and_evaluate(get_config(), workdir)
    print("method     stored ACC  reconfig ACC  stored FM")
    for name, method in results["methods"].items():
        stored, reconfig = method["stored"], method["reconfig"]
        figures = stored["final"]["mean"], reconfig["final"]["mean"], stored["fm"]["mean"]
        print(f"{name:9} {figures[0]:11.3f} {figures[1]:13.3f} {figures[2]:10.3f}")
    print(f"The report is in {workdir}/report.md")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["runs/own_parts"])
