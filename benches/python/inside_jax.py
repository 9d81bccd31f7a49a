"""What control costs inside JAX, paired in one process: `python inside_jax.py [--rounds N] [--lowering]`.

Prints a table. The plain step, the controlled one and the same control written by hand (`handwritten.py`) take turns on the same
batch; ratios are of one round, and their median and quartiles are printed. `--lowering` measures instead what `entropic.control`
takes on top of JAX's own trace and lowering for `gpt2-small`, which is not run.
"""

import argparse
import functools
import statistics
import time

import entropic
import handwritten
import jax
import numpy as np
from entropic_export.bundles import gpt


def steps(rounds: int) -> None:
    """Seconds of a step of `gpt-nano`, and ratios."""
    init, step, _ = gpt.training(gpt.NANO)
    batch = np.random.default_rng(0).integers(0, 256, (gpt.NANO.batch, gpt.NANO.context + 1)).astype(np.int32)
    state = jax.jit(init)(0)
    plain = jax.jit(step, donate_argnums=(0, 1))
    controlled, ctl = entropic.control(plain, (*state, batch))
    gate = handwritten.Gate()
    written = handwritten.controlled(functools.partial(gpt.loss, gpt.NANO), gpt.optimizer(gpt.NANO), gate)
    by_hand = jax.jit(written, donate_argnums=(0, 1, 2))
    fresh = [jax.jit(init)(0) for _ in range(2)]
    own_control = jax.jit(lambda params: handwritten.start(params, gate))(fresh[1][0])
    runs = {"plain": state, "controlled": (ctl, *fresh[0]), "by hand": (*fresh[1], own_control)}

    def one(name: str) -> float:
        start = time.perf_counter()
        if name == "controlled":
            own, ctl, _ = controlled(*runs[name], batch)
            runs[name], last = (ctl, *own[:2]), own[2]
        elif name == "plain":
            *runs[name], last = plain(*runs[name], batch)
        else:
            *now, last, _ = by_hand(*runs[name], batch)
            runs[name] = now
        jax.block_until_ready(last)
        return time.perf_counter() - start

    for name in runs:
        one(name), one(name)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(rounds):
        order = list(runs) if n % 2 else list(runs)[::-1]
        for name in order:
            times[name].append(one(name))
    for other in ("plain", "by hand"):
        ratios = [c / o for c, o in zip(times["controlled"], times[other], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"controlled / {other}: {middle:.4f} ({low:.4f} to {high:.4f}), {rounds} rounds")
    print({name: f"{statistics.median(t) * 1e3:.2f} ms" for name, t in times.items()})


def lowering(rounds: int) -> None:
    """Seconds of tracing and lowering `gpt2-small`, without and with control."""
    init, step, _ = gpt.training(gpt.GPT2_SMALL)
    state = jax.eval_shape(init, jax.ShapeDtypeStruct((), np.uint32))
    batch = jax.ShapeDtypeStruct((gpt.GPT2_SMALL.batch, gpt.GPT2_SMALL.context + 1), np.int32)
    alone, more = [], []
    for _ in range(rounds):
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(lambda *args: step(*args)).trace(*state, batch).lower()
        alone.append(time.perf_counter() - start)
        jax.clear_caches()
        start = time.perf_counter()
        controlled, ctl = entropic.control(jax.jit(lambda *args: step(*args)), (*state, batch))
        middle = time.perf_counter()
        controlled.lower(ctl, *state, batch)
        end = time.perf_counter()
        more.append(end - start - alone[-1])
        print(f"trace and lower {alone[-1]:.2f} s; control {middle - start:.2f} s, lowering its result {end - middle:.2f} s")
    print(f"control on top of trace and lowering: {statistics.median(more):.2f} s (median of {rounds})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--lowering", action="store_true")
    options = parser.parse_args()
    (lowering if options.lowering else steps)(options.rounds)
