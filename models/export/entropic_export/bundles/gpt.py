"""GPT-2 as train steps: layers unrolled, pre-norm, learned positions, tied head, AdamW with warmup and cosine decay.

`gpt-nano` is small enough to train on a CPU in minutes; `gpt2-small` is the 124M model in bf16 with f32 state.
`gpt-nano-spike` and `gpt-nano-noclip` are `gpt-nano` with one fault each, for the experiments in docs/demos.md.
Every weight has a readable path: `params['h0']['qkv']`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ..bundle import export_bundle
from ..manifest import Manifest

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Spike:
    """A fault in a learning-rate schedule.

    Attributes:
      start: the first step of it, from 0.
      steps: how many steps it lasts.
      factor: what the learning rate is multiplied by meanwhile.
    """

    start: int
    steps: int
    factor: float


@dataclasses.dataclass(frozen=True)
class Config:
    """A model and its training.

    Attributes:
      vocab: number of token ids.
      vocab_rows: rows of the embedding, `vocab` rounded up for the hardware.
      context: positions; a batch row holds one token more.
      layers: blocks, unrolled in the graph.
      heads: attention heads per block.
      width: size of the residual stream.
      compute: dtype of matrix products; parameters, moments, norms, softmax and loss stay f32.
      batch: rows per step.
      learning_rate: peak of the schedule.
      warmup: steps of linear warmup.
      horizon: steps after which the cosine has reached a tenth of the peak.
      b2: decay of AdamW's second moment; the first one's is 0.9.
      weight_decay: on matrices only.
      clip: bound of the gradient's global norm; None leaves it alone.
      data: "bytes" or "tokens".
      spike: a fault in the schedule; None leaves it as it is.
    """

    vocab: int
    vocab_rows: int
    context: int
    layers: int
    heads: int
    width: int
    compute: str
    batch: int
    learning_rate: float
    warmup: int
    horizon: int
    b2: float
    weight_decay: float
    clip: float | None
    data: Literal["bytes", "tokens"]
    spike: Spike | None = None


NANO = Config(
    vocab=256, vocab_rows=256, context=128, layers=4, heads=4, width=128, compute="float32", batch=16,
    learning_rate=3e-3, warmup=50, horizon=600, b2=0.95, weight_decay=0.1, clip=1.0, data="bytes",
)  # fmt: skip
# At two fifths of a run of 250 steps: warmup is over, and the loss still falls.
NANO_SPIKE = dataclasses.replace(NANO, spike=Spike(start=100, steps=20, factor=30.0))
NANO_NOCLIP = dataclasses.replace(NANO, clip=None)
GPT2_SMALL = Config(
    vocab=50257, vocab_rows=50304, context=1024, layers=12, heads=12, width=768, compute="bfloat16", batch=8,
    learning_rate=6e-4, warmup=2000, horizon=600_000, b2=0.95, weight_decay=0.1, clip=None, data="tokens",
)  # fmt: skip
GPT2_SMALL_CLIP = dataclasses.replace(GPT2_SMALL, clip=1.0)


def optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW on a warmup-cosine schedule, behind global-norm clipping where the configuration asks for it."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.horizon, config.learning_rate / 10
    )
    adamw = optax.adamw(
        schedule if config.spike is None else spiked(schedule, config.spike),
        b1=0.9,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
    )
    return adamw if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), adamw)


def spiked(schedule: optax.Schedule, spike: Spike) -> optax.Schedule:
    """The schedule with a fault in it."""

    def faulty(count: jax.Array) -> jax.Array:
        inside = (count >= spike.start) & (count < spike.start + spike.steps)
        return schedule(count) * jnp.where(inside, spike.factor, 1.0)

    return faulty


def make_params(config: Config, key: jax.Array) -> Params:
    """GPT-2's initialisation: normal 0.02, projections into the residual stream scaled down by depth."""
    d = config.width
    keys = iter(jax.random.split(key, 2 + 4 * config.layers))

    def normal(shape: tuple[int, ...], scale: float = 0.02) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape)

    into_residual = 0.02 / (2 * config.layers) ** 0.5
    params: Params = {
        "wte": normal((config.vocab_rows, d)),
        "wpe": normal((config.context, d)),
        "ln_f": jnp.ones(d),
        "ln_f_bias": jnp.zeros(d),
    }
    for layer in range(config.layers):
        params[f"h{layer}"] = {
            "ln_1": jnp.ones(d),
            "ln_1_bias": jnp.zeros(d),
            "qkv": normal((d, 3 * d)),
            "qkv_bias": jnp.zeros(3 * d),
            "proj": normal((d, d), into_residual),
            "proj_bias": jnp.zeros(d),
            "ln_2": jnp.ones(d),
            "ln_2_bias": jnp.zeros(d),
            "fc": normal((d, 4 * d)),
            "fc_bias": jnp.zeros(4 * d),
            "out": normal((4 * d, d), into_residual),
            "out_bias": jnp.zeros(d),
        }
    return params


def logits(config: Config, params: Params, inputs: jax.Array) -> jax.Array:
    """f32[rows, positions, vocab_rows]: of each next token, from int32[rows, positions]."""
    dtype = jnp.dtype(config.compute)
    x = (params["wte"][inputs] + params["wpe"]).astype(dtype)
    for layer in range(config.layers):
        block = params[f"h{layer}"]
        x = x + _attention(config, block, _norm(x, block["ln_1"], block["ln_1_bias"]))
        x = x + _mlp(config, block, _norm(x, block["ln_2"], block["ln_2_bias"]))
    x = _norm(x, params["ln_f"], params["ln_f_bias"])
    return jnp.einsum("btd,vd->btv", x, params["wte"].astype(dtype), preferred_element_type=jnp.float32)


def loss(config: Config, params: Params, tokens: jax.Array) -> jax.Array:
    """Mean cross entropy, in nats per token, of each token of a row given those before it."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits(config, params, inputs), targets).mean()


def training(
    config: Config, tx: optax.GradientTransformation | None = None
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """`init(seed)`, `step(params, opt_state, tokens)` and `evaluate(params, opt_state, tokens)` of a configuration.

    `tx` takes the place of its own optimizer.
    """
    tx = optimizer(config) if tx is None else tx

    def init(seed: jax.Array) -> tuple[Params, optax.OptState]:
        params = make_params(config, jax.random.key(seed))
        return params, tx.init(params)

    def step(params: Params, opt_state: optax.OptState, tokens: jax.Array):
        value, grads = jax.value_and_grad(functools.partial(loss, config))(params, tokens)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    def evaluate(params: Params, opt_state: optax.OptState, tokens: jax.Array) -> jax.Array:
        return loss(config, params, tokens)

    return init, step, evaluate


def export(path: pathlib.Path, name: str, config: Config) -> Manifest:
    """Writes the bundle of a configuration."""
    init, step, evaluate = training(config)
    return export_bundle(
        step,
        init,
        jax.ShapeDtypeStruct((config.batch, config.context + 1), jnp.int32),
        path,
        name=name,
        eval_step=evaluate,
        data=config.data,
        vocab=config.vocab,
        versions_of=("optax",),
    )


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-5)
    return (wide * scale + bias).astype(x.dtype)


def _linear(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    # One product over all rows and positions: XLA's CPU backend is slower on gradients that contract two dimensions.
    flat = x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype) + bias.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], weight.shape[-1])


def _attention(config: Config, block: Params, x: jax.Array) -> jax.Array:
    rows, length, _ = x.shape
    size = config.width // config.heads
    qkv = _linear(x, block["qkv"], block["qkv_bias"]).reshape(rows, length, 3, config.heads, size)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32) * size**-0.5
    # The mask is computed, so that no constant of [context, context] stands in the module.
    position = jax.lax.broadcasted_iota(jnp.int32, (length, length), 0)
    visible = position >= jax.lax.broadcasted_iota(jnp.int32, (length, length), 1)
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(rows, length, config.width)
    return _linear(mixed, block["proj"], block["proj_bias"])


def _mlp(config: Config, block: Params, x: jax.Array) -> jax.Array:
    del config
    return _linear(jax.nn.gelu(_linear(x, block["fc"], block["fc_bias"])), block["out"], block["out_bias"])
