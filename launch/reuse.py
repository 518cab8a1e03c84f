"""Reuse of deep features between neighbouring levels (DeepCache, Ma et al. 2024), tried.

python launch/reuse.py TASK STEPS,EVERY ...: SDEdit on val, in whose U-Net all but the finest level is
computed at every EVERY-th step only. Time is that of 16 pictures.
"""
import sys, time
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from cdsde.networks import adm, build, blocks
from cdsde.networks.adm import ADMUNet
from cdsde.diffusion import methods, noise
from cdsde.diffusion.methods import composition
from cdsde.translation import compiled
from cdsde.benchmark import task as task_lib, plan, pictures
from cdsde.data import to_float, to_uint8, write_png
from cdsde.evaluate import translations
from cdsde.runtime import records
from pathlib import Path

class ADMUNetR(ADMUNet):
    @nn.compact
    def __call__(self, x, t, y=None, train=False, deep=None, keep=False):
        emb = self._embed(t, y, x.shape[0])
        top = deep is not None
        blocks.check_image(x, len(self.channel_mult))
        n = self.num_res_blocks
        if top:
            width = int(self.channel_mult[0] * self.channels)
            h = blocks.conv(x, width, name="input_blocks_0_0", dtype=self.dtype)
            skips = [h]
            for i in range(n):
                h = self._res(h, emb, width, train, f"input_blocks_{i+1}_0"); skips.append(h)
            h, index, levels = deep, (n + 1) * (len(self.channel_mult) - 1), [(0, self.channel_mult[0])]
            factor = 1
        else:
            h, skips = self._encode(x, emb, train)
            index, factor = 0, 2 ** (len(self.channel_mult) - 1)
            levels = list(reversed(list(enumerate(self.channel_mult))))
        kept = None
        for level, mult in levels:
            if level == 0: kept = h
            for i in range(n + 1):
                name, member = f"output_blocks_{index}", 1
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._res(h, emb, int(mult * self.channels), train, f"{name}_0")
                if factor in self.attention_factors:
                    h = self._attention(h, f"{name}_1", None); member = 2
                if level > 0 and i == n:
                    h = self._up(h, emb, train, f"{name}_{member}"); factor //= 2
                index += 1
        h = self._out_norm("out_0")(h)
        out = blocks.conv(h, self.out_channels, name="out_2", zero=True)
        return (out, kept) if keep else out

build.ADMUNet = ADMUNetR
name, split = sys.argv[1], "val"
T = task_lib.Task(name, Path("runs/reuse"), {"sample.split": split, "method": "sdedit"})

def patched(config, net, module):
    patch, exponents = net.patch_size, net.get("fourier", ())
    def apply(params, x, t, keep=False, **kw):
        out = module.apply(params, build.space_to_depth(blocks.with_fourier_features(x, exponents), patch), t, keep=keep, **kw)
        return out
    return build.Model(None, apply)
def score(config):
    from cdsde.diffusion import schedules
    net, schedule = config.score, build.schedule_of(config)
    init, apply = patched(config, net, build.score_module(config))
    def eps(params, x, t, keep=False, deep=None):
        out = apply(params, x, t, keep=keep, deep=deep)
        out, kept = out if keep else (out, None)
        e = build.depth_to_space(out, net.patch_size)[..., :3]
        e = schedules.v_to_eps(x, e, schedules.gather(schedule.alpha_bar, jnp.asarray(t).astype(jnp.int32)))
        return (e, kept) if keep else e
    return eps

for steps, every in [tuple(map(int, s.split(","))) for s in sys.argv[2:]]:
    run = plan.Run("x", name, "sdedit", "x", None, {"sample.steps": steps})
    config, params, record = T.settings(run)
    eps = score(config)
    full = jax.jit(lambda x, i: eps(params["score"], x, i, keep=True))
    shallow = jax.jit(lambda x, i, d: eps(params["score"], x, i, deep=d))
    state = {"n": 0, "deep": None}
    def network(y, i):
        if state["n"] % every == 0:
            e, state["deep"] = full(y, i)
        else:
            e = shallow(y, i, state["deep"])
        state["n"] += 1
        return e
    out = []
    read = translations.resized(config, T.source)
    N = len(T.source); pics = np.stack([read(j) for j in range(N)])
    ids = np.asarray(noise.ids_of(T.source.ids) if hasattr(noise, "ids_of") else np.arange(N), np.uint32)
    numbers = compiled.levels(config)
    rows = numbers.rows()
    solver = compiled.solver(config)
    for b in range(0, N, 50):
        x0 = to_float(pics[b:b+50])
        parts = composition.make_round(x0, methods.METHODS["sdedit"], config["sdedit"], {"score": network}, noise=noise.of_images(jax.random.key(0), jnp.asarray(ids[b:b+50]), x0.shape[1:]), solver=solver)
        carry, drawn = parts.begin(x0, 0, rows)
        state["n"] = 0
        for k in range(steps):
            row = jax.tree.map(lambda c: jnp.asarray(c[k]), rows)
            carry = parts.step(carry, row, 0, drawn)
        out.append(to_uint8(np.asarray(carry[0])))
    out = np.concatenate(out)
    folder = Path(f"runs/reuse/{name}_{steps}_{every}"); folder.mkdir(parents=True, exist_ok=True)
    for j, png in enumerate(records.output_names(T.source.ids)): write_png(folder / png, out[j])
    per = translations.measure(config, T.source, T.pairs, folder, T.pairwise, T.legibility)
    s = translations.summarise(per, 1000)
    s |= translations.distances(T.reference, translations.written(config, T.source, folder), N)
    # time, batch 16
    x = jnp.zeros((16, 64, 64, 3)); i = jnp.float32(100); d = full(x, i)[1]; shallow(x, i, d)
    def clock(f):
        ts = []
        for _ in range(8):
            a = time.perf_counter(); jax.block_until_ready(f()); ts.append(time.perf_counter() - a)
        return float(np.median(ts))
    tf, tsh = clock(lambda: full(x, i)), clock(lambda: shallow(x, i, d))
    nf = -(-steps // every); total = nf * tf + (steps - nf) * tsh
    told = {k: round(s[k]["value"], 3) for k in ("KID-EffNetLite0 x1000", "FD-EffNetLite0-block4", "L2 to true target", "legible by features")}
    print(f"{steps} steps, every {every}: full {tf*1e3:.0f} ms, shallow {tsh*1e3:.0f} ms, {total:.2f} s", told, flush=True)
