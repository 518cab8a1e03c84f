"""`--mode=sample`: images → solver → one PNG each, for folders of any size.

Work is cut into batches over this process's devices; each process takes its share of the list. A
run that was cut off goes on where it stopped, since finished files are left alone; a folder that
holds results of other settings is refused rather than mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from cdsde import config as config_lib
from cdsde import mesh, methods, models, report, solvers, weights
from cdsde.data import (
    FilesSource,
    contact_sheet,
    decode,
    eval_batches,
    open_domain,
    open_pairs,
    resize,
    to_uint8,
    write_png,
)

RECORD = "settings.json"  # beside the images: what they were made with


class Sampler:
    """A compiled translation: `sampler(images uint8 [B, H, W, 3], ids uint32 [B]) -> uint8`.

    Args:
      config: the task; its method, SDE and sampling keys.
      params: `{stage: parameter tree}` for the stages that the method needs.
      devices: the mesh over which batches are split (default: this process's devices).

    Weights, levels and seed are arguments of the compiled program; `update` changes them without
    compiling again, as long as the number of steps stays.
    """

    def __init__(self, config: ConfigDict, params: dict, devices=None):
        self.devices = devices or mesh.make_mesh(jax.local_devices())
        self.params = mesh.put_replicated(params, self.devices)
        self._run = jax.jit(program(config), static_argnames=("rounds", "trace"))
        self.update(config)

    def update(self, config: ConfigDict) -> None:
        """Take over new weights λ, start M, seed, η or rounds."""
        s = config.sample
        self._rounds = s.rounds
        start = config_lib.start_index(config)
        grid = solvers.make_grid(models.schedule_of(config), start, s.steps, s.variance)
        lambdas = methods.weights(config.method, config[config.method], grid.index)
        arguments = (grid, lambdas, np.float32(s.eta), jax.random.key(s.seed))
        self._arguments = mesh.put_replicated(arguments, self.devices)
        self.evaluations = len(grid.index) * s.rounds

    def __call__(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """uint8 `[B, H, W, 3]` and uint32 `[B]` → uint8 `[B, H, W, 3]`; any B."""
        return to_uint8(self.states(images, ids)[0])

    def states(self, images: np.ndarray, ids: np.ndarray, trace: bool = False):
        """Unclamped float32 `[B, H, W, 3]` and, with `trace`, `[K, S, B, H, W, 3]` states."""
        count = len(images)
        missing = mesh.round_up(count, self.devices) - count
        rows = [np.concatenate([a, np.repeat(a[-1:], missing, 0)]) for a in (images, ids)]
        images, ids = mesh.put_batch(tuple(rows), self.devices)
        y, states = self._run(
            self.params, images, ids, *self._arguments, rounds=self._rounds, trace=trace
        )
        y = mesh.local_rows(y)[:count]
        return y, None if states is None else np.asarray(states)[:, :, :count]


def program(config: ConfigDict):
    """The pure function that `Sampler` compiles; static choices come from the config."""
    settings = config[config.method]
    stages = config_lib.needed_stages(config.method)
    networks = {stage: models.MODELS[stage](config).apply for stage in stages}
    make = methods.METHODS[config.method]
    solver = solvers.SOLVERS[config.sample.solver]
    clip = config.sample.clip

    def bind(apply, params):
        return lambda *args, **kwargs: apply(params, *args, **kwargs)

    def run(params, images, ids, grid, lambdas, eta, key, rounds=1, trace=False):
        bound = {stage: bind(apply, params[stage]) for stage, apply in networks.items()}
        x0 = images.astype(np.float32) / 127.5 - 1
        return methods.translate(
            x0,
            make(settings, bound),
            eps_fn=bound["score"],
            grid=grid,
            noise=methods.noise_of_images(key, ids, x0.shape[1:]),
            weights=lambdas,
            step=solver(eta),
            rounds=rounds,
            clip=clip,
            trace=trace,
        )

    return run


def load_sampler(config: ConfigDict, workdir) -> tuple[Sampler, dict[str, str]]:
    """A sampler with the method's networks, and where each network came from."""
    loaded = {s: weights.load(config, workdir, s) for s in config_lib.needed_stages(config.method)}
    sampler = Sampler(config, {stage: params for stage, (params, _) in loaded.items()})
    return sampler, {stage: origin for stage, (_, origin) in loaded.items()}


def open_input(config: ConfigDict):
    """The images to translate: `sample.input`, or the source domain's split."""
    if config.sample.input is not None:
        return FilesSource(config.sample.input)
    names = config_lib.sources(config)
    if len(names) > 1:
        raise ValueError(
            f"config.data.source names {len(names)} domains ({', '.join(names)}); say which one is "
            "translated with --config.data.source=NAME, or a folder with --config.sample.input=DIR"
        )
    return open_domain(config.data.root, names[0], config.sample.split)


def output_folder(config: ConfigDict, workdir) -> Path:
    """`config.sample.output`, or WORKDIR/samples/METHOD."""
    default = Path(workdir) / "samples" / config.method
    return default if config.sample.output is None else Path(config.sample.output)


def output_names(ids: Sequence[str]) -> list[str]:
    """One PNG name per input: its stem, or its whole name where stems would meet."""
    stems = [Path(name).stem if Path(name).suffix else name for name in ids]
    stems = [stem.replace("/", "_") for stem in stems]
    twice = (
        {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else ()
    )
    whole = [str(name).replace("/", "_") for name in ids]
    return [f"{w if s in twice else s}.png" for s, w in zip(stems, whole, strict=True)]


def settings_record(config: ConfigDict, origins: dict[str, str], source) -> dict:
    """What decides the pixels of a run's results."""
    plain = json.loads(config.to_json_best_effort())
    for key in ("input", "output", "batch_size", "limit", "sheet"):
        plain["sample"].pop(key)
    keep = ("method", "dtype", "sde", "sample", config.method)
    record = {k: plain[k] for k in keep}
    record["data"] = {k: plain["data"][k] for k in ("image_size", "filter")}
    record["start"] = config_lib.start_index(config)
    record["weights"] = origins
    record["input"] = repr(source)
    return record


def sample(config: ConfigDict, workdir) -> Path:
    """Translate every input image; returns the folder of the results.

    Raises:
      ValueError: no weights, a broken image (named), or results of other settings in the way.
    """
    source = open_input(config)
    sampler, origins = load_sampler(config, workdir)
    folder = output_folder(config, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings_record(config, origins, source))

    names = output_names(source.ids)
    wanted = range(len(source))[: config.sample.limit]
    mine = list(wanted)[jax.process_index() :: jax.process_count()]
    todo = [j for j in mine if not (folder / names[j]).exists()]
    logging.info(
        "%s: %d of %d images to translate, %d network evaluations each, on %d %s device(s)",
        config.method,
        len(todo),
        len(mine),
        sampler.evaluations,
        sampler.devices.size,
        jax.default_backend(),
    )
    size = min(mesh.round_up(config.sample.batch_size, sampler.devices), _cap(todo, sampler))
    batches = eval_batches(source, image_size=config.data.image_size, batch_size=size, indices=todo)
    by_id = dict(zip(source.ids, names, strict=True))
    with tqdm(total=len(todo), unit="image", desc=config.method, disable=None) as bar:
        for batch in batches:
            images = sampler(batch["image"], batch["id"])
            for image, name, real in zip(images, batch["name"], batch["mask"], strict=True):
                if real:
                    write_png(folder / by_id[name], image)
                    bar.update()
    mesh.barrier("sampled")
    if jax.process_index() == 0:
        sheet = sheet_of(config, source, folder, names, wanted)
        write_png(folder / "sheet.png", sheet)
        logging.info("results in %s, the first of them in %s", folder, folder / "sheet.png")
    return folder


def _cap(todo, sampler) -> int:
    """No batch is padded further than the work that there is."""
    return max(mesh.round_up(len(todo), sampler.devices), sampler.devices.size)


def _claim(folder: Path, record: dict) -> None:
    """Write the record, or check that the results already there have the same one."""
    path = folder / RECORD
    if path.exists():
        old = json.loads(path.read_text())
        changed = sorted(
            k for k in record | old if old.get(k) != json.loads(json.dumps(record)).get(k)
        )
        if changed:
            raise ValueError(
                f"{folder} holds results made with other settings (different: "
                f"{', '.join(changed)}); delete it or choose another --config.sample.output"
            )
    elif jax.process_index() == 0:
        report.write_json(path, record)


def fingerprint(record: dict) -> str:
    """A short name of a settings record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def sheet_of(config: ConfigDict, source, folder: Path, names, wanted) -> np.ndarray:
    """Source | result | true target (where there is one) of the first images, uint8."""
    pairs = None
    if config.sample.input is None:
        domains = config_lib.sources(config)
        pairs = open_pairs(config.data.root, domains[0], config.data.target, config.sample.split)
    size = config.data.image_size
    rows = []
    for j in list(wanted)[: config.sample.sheet]:
        row = [resize(source[j]["image"], size), decode(folder / names[j], names[j])]
        rows.append(row + ([resize(pairs[j]["image"], size)] if pairs else []))
    return contact_sheet(rows, ["source", config.method, *(["true target"] if pairs else [])])


class SheetMaker:
    """Sheets of the score network in training: SDEdit of the first val images of the source."""

    def __init__(self, config: ConfigDict, devices):
        config = ConfigDict(config.copy_and_resolve_references())
        config.method = "sdedit"
        config.sample.update(dict(steps=min(25, config.sdedit.start), clip=True, rounds=1))
        config.sample.start = config.sdedit.start
        domain = config_lib.sources(config)[0]
        source = open_domain(config.data.root, domain, "val")
        count = min(config.train.sample_images, len(source))
        self._batch = next(
            eval_batches(
                source, image_size=config.data.image_size, batch_size=count, indices=range(count)
            )
        )
        self._config, self._sampler = config, None

    def __call__(self, ema) -> np.ndarray:
        """The sheet for the given averaged parameters, uint8 `[H, W, 3]`."""
        params = {"score": jax.tree.map(np.asarray, ema)}
        if self._sampler is None:
            self._sampler = Sampler(self._config, params)
        self._sampler.params = mesh.put_replicated(params, self._sampler.devices)
        results = self._sampler(self._batch["image"], self._batch["id"])
        rows = [[a, b] for a, b in zip(self._batch["image"], results, strict=True)]
        return contact_sheet(rows, ["source", "SDEdit"])


def save_sheet(path, sheet: np.ndarray) -> None:
    """Write a sheet, uint8 `[H, W, 3]`."""
    write_png(path, sheet)
