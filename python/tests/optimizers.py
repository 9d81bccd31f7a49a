"""Every optimizer that the installed optax exports, under control: writes docs/python-optimizers.md.

    python python/tests/optimizers.py            # writes the page
    python python/tests/optimizers.py --check    # writes nothing; fails where the page is not what comes out, or a gradient is wrong

Of each, on an MLP and on a small GPT: the gradients that discovery found are computed in four steps and compared with those of
`jax.grad`; 20 steps under a policy that only watches are compared with 20 plain ones, bit for bit. An optimizer is a public function of
`optax` or `optax.contrib` that returns a gradient transformation and has a learning rate, or wraps another optimizer.
"""

import argparse
import dataclasses
import functools
import inspect
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import entropic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from steps import same_bits

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "python-optimizers.md"
STEPS = 20
GRADIENTS = 4

# A relative distance of whole tensors. Gradients are found as the graph computes them; `jax.grad` alone is another program.
TOLERANCE = 1e-4

ARGUMENTS: dict[str, Callable[[], Any]] = {
    "learning_rate": lambda: 1e-3,
    "base_optimizer": lambda: optax.sgd(1e-3),
    "inner": lambda: optax.adam(1e-3),
    "optimizer": lambda: optax.adam(1e-3),
    "adv_optimizer": lambda: optax.sgd(1e-3),
    "fast_optimizer": lambda: optax.adam(1e-3),
    "max_consecutive_errors": lambda: 5,
    "sync_period": lambda: 5,
    "slow_step_size": lambda: 0.5,
    "l2_norm_clip": lambda: 1.0,
    "noise_multiplier": lambda: 0.1,
    "seed": lambda: 0,
    "key": lambda: jax.random.key(0),
    "should_transform_fn": lambda: lambda step, **_: step >= 0,
    "mask": lambda: True,
    "freeze_mask": lambda: False,
}
# What some optimizers want to know besides the gradient; the first set that one takes is given to it.
EXTRAS = (("value", "grad", "value_fn"), ("value", "grad", "value_fn", "obj_fn", "loss"), ())
WRAPPED = {"base_optimizer", "inner", "optimizer", "fast_optimizer"}


def optimizers() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Name and function of each, in order."""
    for module in (optax, optax.contrib):
        for name in sorted(dir(module)):
            function = getattr(module, name)
            if name.startswith(("_", "scale_by_")) or not inspect.isfunction(function):
                continue
            signature = inspect.signature(function)
            names = {p for p in signature.parameters}
            transforms = "GradientTransformation" in str(signature.return_annotation)
            if (transforms and (any("learning_rate" in p for p in names) or names & WRAPPED)) or "learning_rate" in names:
                if transforms or signature.return_annotation is signature.empty:
                    yield f"{module.__name__}.{name}", function


def make(function: Callable[..., Any]) -> Any:
    """An optimizer with the defaults of its function; what has none is in ARGUMENTS."""
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return function(**{name: ARGUMENTS[name]() for name in needed})


@dataclasses.dataclass
class Model:
    """What is trained."""

    name: str
    params: Any
    loss: Callable[[Any, Any], jax.Array]
    batch: Callable[[int], Any]

    @functools.cached_property
    def grad(self) -> Callable[..., Any]:
        """Gradients, by JAX."""
        return jax.jit(jax.grad(self.loss))


def mlp() -> Model:
    """Two layers, cross-entropy."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "w1": jax.random.normal(keys[0], (12, 16)) * 0.3,
        "b1": jnp.zeros(16),
        "w2": jax.random.normal(keys[1], (16, 4)) * 0.3,
        "b2": jnp.zeros(4),
    }

    def loss(p: Any, batch: Any) -> jax.Array:
        logits = jax.nn.gelu(batch["x"] @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def batch(n: int) -> Any:
        rng = np.random.default_rng(n)
        return {"x": rng.normal(size=(32, 12)).astype(np.float32), "y": rng.integers(0, 4, 32).astype(np.int32)}

    return Model("MLP", params, loss, batch)


def gpt() -> Model:
    """A block of width 16 over 32 tokens, tied head."""
    vocabulary, width, heads, window = 32, 16, 2, 12
    keys = iter(jax.random.split(jax.random.key(1), 16))
    matrix = lambda *shape: jax.random.normal(next(keys), shape) * 0.2  # noqa: E731
    norm = lambda: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}  # noqa: E731
    block = lambda: {  # noqa: E731
        "ln1": norm(), "qkv": matrix(width, 3 * width), "proj": matrix(width, width),
        "ln2": norm(), "up": matrix(width, 4 * width), "down": matrix(4 * width, width),
    }  # fmt: skip
    params = {"wte": matrix(vocabulary, width), "wpe": matrix(window, width), "h0": block(), "ln": norm()}

    def normed(p: Any, x: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def attention(p: Any, x: jax.Array) -> jax.Array:
        split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # noqa: E731
        q, k, v = map(split, jnp.split(x @ p["qkv"], 3, axis=-1))
        scores = q @ k.transpose(0, 1, 3, 2) / (width // heads) ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
        return (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape) @ p["proj"]

    def loss(p: Any, tokens: Any) -> jax.Array:
        x = p["wte"][tokens[:, :-1]] + p["wpe"]
        x = x + attention(p["h0"], normed(p["h0"]["ln1"], x))
        x = x + jax.nn.gelu(normed(p["h0"]["ln2"], x) @ p["h0"]["up"]) @ p["h0"]["down"]
        logits = normed(p["ln"], x) @ p["wte"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def batch(n: int) -> Any:
        return np.random.default_rng(n).integers(0, vocabulary, (8, window + 1)).astype(np.int32)

    return Model("GPT", params, loss, batch)


def step_of(model: Model, tx: Any, per_example: bool, extras: tuple[str, ...]) -> Callable[..., Any]:
    """An ordinary train step."""
    tx = optax.with_extra_args_support(tx)

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        value_fn = lambda p, *_: model.loss(p, batch)  # noqa: E731
        value, grads = jax.value_and_grad(value_fn)(trained(params))
        given = per_example_gradients(model, params, batch) if per_example else grads
        known = {"value": value, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn, "loss": value}
        updates, opt_state = tx.update(given, opt_state, params, **{name: known[name] for name in extras})
        return optax.apply_updates(params, updates), opt_state, value

    return step


def trained(params: Any) -> Any:
    """The parameters that the loss takes."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def per_example_gradients(model: Model, params: Any, batch: Any) -> Any:
    """Gradients with the batch as their first dimension."""
    single = lambda p, example: model.loss(p, jax.tree.map(lambda x: x[None], example))  # noqa: E731
    return jax.vmap(jax.grad(single), (None, 0))(params, batch)


def clipped_sum(model: Model, params: Any, batch: Any) -> Any:
    """What a differentially private optimizer calls the gradient, before noise: clipped example by example, and summed."""
    grads = per_example_gradients(model, params, batch)
    norms = jax.vmap(optax.tree.norm)(grads)
    factors = jnp.minimum(1.0, ARGUMENTS["l2_norm_clip"]() / norms)
    return jax.tree.map(lambda g: jnp.tensordot(factors, g, 1), grads)


@dataclasses.dataclass
class Verdict:
    """What came of one optimizer on one model."""

    text: str
    right: int = 0
    wrong: int = 0
    absent: int = 0
    refused: bool = False
    failed: bool = False


def judge(model: Model, function: Callable[..., Any]) -> Verdict:
    """Finds the gradients, compares them, and compares 20 steps."""
    try:
        tx = make(function)
        params = optax.LookaheadParams.init_synced(model.params) if function is optax.lookahead else model.params
        state = (params, tx.init(params))
        per_example = "l2_norm_clip" in inspect.signature(function).parameters
        step = first_step(model, tx, per_example, state)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        return Verdict(f"not a step: {first_line(error)}", failed=True)
    args = (*state, model.batch(0))
    try:
        exposed = entropic.expose(step, args, "raw")
        found = entropic.inspect(step, args)
        bits = differing_step(model, step, state)
    except entropic.RefusedError as error:
        return Verdict(first_line(error).removeprefix("step: "), refused=True)
    if bits is not None:
        return Verdict(f"not neutral in step {bits}", failed=True)
    verdict = Verdict("")
    factors = {p["name"]: (p["gradient"] or {}).get("constant_scale") for p in found.report["parameters"]}
    # Gradients are compared as numbers, for which a quick compilation is good enough.
    exposed = jax.jit(exposed, compiler_options={"xla_backend_optimization_level": 0})
    right = {p.name for p in found.parameters if p.gradient}
    for n in range(GRADIENTS):
        params, batch = state[0], model.batch(n)
        (*state, _), gradients = exposed(*state, batch)
        if per_example:
            right &= compare("params", clipped_sum(model, params, batch), gradients, dict.fromkeys(gradients, True))
        else:
            path = "params" if trained(params) is params else "params.fast"
            right &= compare(path, model.grad(trained(params), batch), gradients, factors)
    verdict.right, verdict.wrong = len(right), len(gradients) - len(right)
    absent = [p for p in found.parameters if p.gradient is None and not p.name.startswith("params.slow")]
    verdict.absent = len(absent)
    reasons = {reason for p in absent for reason in p.reasons}
    count = len(jax.tree.leaves(model.params))
    verdict.text = f"{verdict.right} of {count}" + (f"; {'; '.join(sorted(reasons))}" if reasons else "")
    return verdict


def first_step(model: Model, tx: Any, per_example: bool, state: Any) -> Callable[..., Any]:
    """The step with the first of EXTRAS that the optimizer takes; what it says to the last is what is raised."""
    for extras in EXTRAS:
        step = jax.jit(step_of(model, tx, per_example, extras))
        try:
            jax.eval_shape(step, *state, model.batch(0))
            return step
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            refusal = error
    raise refusal


def differing_step(model: Model, step: Callable[..., Any], state: Any) -> int | None:
    """The first of 20 steps whose results under a policy that only watches are not those of the plain step."""
    controlled, ctl = entropic.control(step, (*state, model.batch(0)), "monitor")
    theirs = ours = state
    for n in range(STEPS):
        *theirs, loss = step(*theirs, model.batch(n))
        (*ours, our_loss), ctl, _ = controlled(ctl, *ours, model.batch(n))
        if not same_bits((*theirs, loss), (*ours, our_loss)):
            return n
    return None


def compare(root: str, wanted: Any, found: Any, factors: Any) -> set[str]:
    """The names of the gradients that are the wanted ones, those of the tree at the path `root`."""
    right = set()
    for path, gradient in jax.tree_util.tree_leaves_with_path(wanted):
        name = f"{root}{jax.tree_util.keystr(path)}"
        if name not in found:
            continue
        got, want = np.asarray(found[name], np.float64), np.asarray(gradient, np.float64)
        if factors.get(name):
            # Known up to a constant factor: the direction is what can be compared.
            got = got * np.vdot(got, want) / max(np.vdot(got, got), 1e-300)
        if np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want) + 1e-12:
            right.add(name)
    return right


def first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n")[0].replace("|", "\\|")
    # What is said of the first parameter is said of all.
    return "; ".join(line.split("; ")[:2])


def page() -> tuple[str, bool]:
    """The page, and whether all of it is as it should be."""
    models = [mlp(), gpt()]
    rows, verdicts = [], []
    for name, function in optimizers():
        print(name, file=sys.stderr, flush=True)
        row = [judge(model, function) for model in models]
        verdicts.append(row)
        rows.append(f"| `{name}` | {' | '.join(v.text for v in row)} |")
    flat = [v for row in verdicts for v in row]
    count = lambda what: sum(map(what, verdicts))  # noqa: E731
    right = count(lambda row: all(v.right and not (v.wrong or v.absent or v.failed) for v in row))
    refused = count(lambda row: any(v.refused for v in row))
    partly = count(lambda row: not any(v.refused or v.failed for v in row) and any(v.absent for v in row))
    failed = count(lambda row: any(v.failed for v in row))
    wrong = sum(v.wrong for v in flat)
    text = f"""# Optimizers

`python python/tests/optimizers.py` wrote this page with optax {optax.__version__}: every public function of `optax` and `optax.contrib`
that returns a gradient transformation and has a learning rate, or wraps an optimizer, with its defaults. Columns say for how many
parameters the gradient was found and, in each of {GRADIENTS} steps, is within a relative {TOLERANCE:g} that of `jax.grad`, before noise,
weight decay and factors of the optimizer's own (the view `raw`); or why the step is refused. `dpsgd` has no such gradient: there the sum of
clipped gradients of single examples is what has to be found. All that are not refused are bit for
bit the plain step for {STEPS} steps under the policy `monitor`, on both models.

{len(verdicts)} optimizers: {right} found in full on both models, {partly} in part with a reason, {refused} refused with a reason,
{failed} without a step to control; {wrong} gradients are wrong.

| optimizer | MLP | GPT |
|---|---|---|
{chr(10).join(rows)}
"""
    return text, wrong == 0 and not any(v.text.startswith("not neutral") for v in flat)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    check = parser.parse_args().check
    warnings.simplefilter("ignore")
    text, sound = page()
    if not check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE} is out of date; run python python/tests/optimizers.py", file=sys.stderr)
        return 1
    if not sound:
        print("a gradient is wrong, or a step is not neutral; see the page", file=sys.stderr)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
