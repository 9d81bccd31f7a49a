"""Out of JAX and back: a module that comes back is the program that it was, to the operation and to the bit."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optimizers
import optax
import pytest
from entropic import _jax
from jax import lax
from steps import same_bits

X = np.linspace(-1.0, 1.0, 6 * 8 * 10, dtype=np.float32).reshape(6, 8, 10)


def normalized(x, scale):
    """Means and deviations along dimensions of size 1, on every side."""
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean((0, 2), keepdims=True) + 1e-5) * scale
    return jax.nn.softmax(x, axis=1) + jax.nn.logsumexp(x, axis=0, keepdims=True)


def convolved(x, kernel):
    """A convolution, pooling and a batch norm."""
    y = lax.conv_general_dilated(x[..., None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return (y - y.mean((0, 1, 2), keepdims=True)) / (y.std((0, 1, 2), keepdims=True) + 1e-3)


def looped(x, scale):
    """A scan, a loop, a branch."""
    carried, every = lax.scan(lambda c, row: (c * 0.9 + row, (c * row).sum(keepdims=True)), jnp.zeros(x.shape[1:]), x)
    count, value = lax.while_loop(lambda v: v[0] < 3, lambda v: (v[0] + 1, v[1] * scale), (0, carried))
    return lax.cond(count > 2, lambda v: v + every.sum(0), lambda v: v, value)


def shuffled(x, seed):
    """Random bits, a sort, sums along, gathers, narrow numbers."""
    order = jax.random.permutation(jax.random.key(seed), x.shape[1])
    narrow = jnp.cumsum(x[:, order], axis=-1).astype(jnp.bfloat16)
    noise = jax.random.normal(jax.random.key(seed), narrow.shape, jnp.bfloat16)
    return jnp.sort(narrow + noise, axis=1).at[:, 0].add(1), jnp.take_along_axis(x, order[None, :, None], 1)


GPT = optimizers.gpt()


def trained(params, tokens):
    """A step of a small GPT."""
    loss, grads = jax.value_and_grad(GPT.loss)(params, tokens)
    updates, _ = optax.adamw(1e-3).update(grads, optax.adamw(1e-3).init(params), params)
    return optax.apply_updates(params, updates), loss


PROGRAMS = {
    "broadcasts": (normalized, (X, np.float32(0.5))),
    "convolution": (jax.grad(lambda *a: jnp.square(convolved(*a)).sum(), (0, 1)), (X, np.ones((3, 3, 1, 4), np.float32))),
    "loops": (looped, (X, np.float32(0.5))),
    "bits": (shuffled, (X, np.uint32(3))),
    "gpt": (trained, (GPT.params, GPT.batch(0))),
}


def there_and_back(function, args):
    """The function by way of its module, of the module's parameters."""
    lowered = _jax.lower(function, args, {})
    program = _jax.Program(
        name=lowered.name,
        stablehlo=_jax.stablehlo(lowered.module),
        devices=1,
        in_avals=tuple(lowered.in_avals[n] for n in lowered.kept),
        in_names=tuple(lowered.in_names[n] for n in lowered.kept),
        out_avals=lowered.out_avals,
    )
    leaves = jax.tree.leaves(args)
    return jax.jit(lambda *arrays: _jax.call(program, *arrays)), [leaves[n] for n in lowered.kept]


def operations(lowered):
    """How many of each operation and type a lowered program has, calls and what is handed through them aside."""
    text = lowered.compiler_ir("hlo").as_hlo_text()
    found = re.findall(r"= (\S+) ([a-z-]+)\(", text)
    return collections.Counter(f for f in found if f[1] not in {"parameter", "call", "tuple", "get-tuple-element", "constant"})


@pytest.mark.parametrize(("function", "args"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_way_back_changes_nothing(function, args):
    back, leaves = there_and_back(function, args)
    plain = jax.jit(function)
    before, after = operations(plain.lower(*args)), operations(back.lower(*leaves))
    assert before == after, (before - after, after - before)
    assert same_bits(plain(*args), back(*leaves))
