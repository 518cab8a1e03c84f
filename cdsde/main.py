"""The command line: reads the flags and the config, and starts one program.

    python -m cdsde.main --config=twemoji2fluent --mode=sample

This is the only module that reads flags.
"""

from __future__ import annotations

import os
import sys

from cdsde.runtime import huge_pages, interrupts

# Everything else is imported after `interrupts.take()`, by the functions that need it.
MODES = ("train", "sample", "eval", "edit", "serve", "import", "export")
TOLD = (ValueError, OSError, ImportError, FloatingPointError)  # their messages are sentences
EXHAUSTED = "RESOURCE_EXHAUSTED"  # in the RuntimeError of JAX where a device's memory is too little


def define_flags() -> None:
    """Defines the flags of this program, except --config (command_line.py)."""
    from absl import flags

    flags.DEFINE_enum(
        "mode",
        None,
        MODES,
        "train: the networks that the method needs and that have no weights; sample: translate "
        "images; "
        "eval: measure the results; edit: change images by words; "
        "serve: open a demo page; "
        "import: convert published PyTorch weights into the work folder; "
        "export: write a network, or the translation, to config.export.path.",
        required=True,
    )
    flags.DEFINE_string(
        "workdir", None, "Folder of checkpoints, logs, samples and results (default: runs/TASK)."
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "For several processes: HOST:PORT of the first one, the same for all; 'auto' where JAX "
        "gets it from SLURM, Open MPI, GKE or a TPU pod.",
    )
    flags.DEFINE_integer("processes", None, "Number of processes; with --coordinator=HOST:PORT.")
    flags.DEFINE_integer(
        "process", None, "Index of this process, from 0; with --coordinator=HOST:PORT."
    )


def run(argv) -> None:
    """Runs the program of --mode.

    Raises:
      SystemExit: the program failed (one sentence goes to standard error) or was preempted.
    """
    from absl import app, flags, logging

    from cdsde.config import checks

    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument '{argv[1]}'; overrides are --config.KEY=VALUE")
    given = flags.FLAGS
    config, mode = given.config, given.mode
    workdir = os.path.expanduser(given.workdir or f"runs/{config.task}")
    try:
        checks.validate(config)
        _check_mode(mode, config)
        if given.coordinator is None and (given.processes, given.process) != (None, None):
            raise ValueError(
                "--processes and --process are given without --coordinator=HOST:PORT, so each "
                "process would do all of the work; add it"
            )
        if given.coordinator:
            from cdsde.runtime import mesh

            mesh.connect(given.coordinator, given.processes, given.process)
        from cdsde.runtime import cache, preemption

        cache.keep_programs(config.cache)
        try:
            from cdsde.weights import adoption

            if mode != "train":
                config = adoption.adopted(config, workdir, importing=mode == "import")
            _program(mode, config)(config, workdir)
        except preemption.Preempted as reason:
            logging.warning("%s", reason)
            sys.exit(reason.exit_code)
    except (*TOLD, MemoryError, RuntimeError) as error:
        told = str(error) if isinstance(error, TOLD) else _of_memory(error, mode)
        # Prints one sentence; --verbosity=1 shows the trace.
        logging.debug("", exc_info=True)
        if told is None or logging.level_debug():
            raise
        sys.exit(f"error: {told}")


def _of_memory(error: Exception, mode: str) -> str | None:
    """The sentence about an error of too little memory; None: it is another error."""
    reason = str(error).strip().split("\n")[0]
    if not isinstance(error, MemoryError) and EXHAUSTED not in reason:
        return None
    reason = reason.split(f"{EXHAUSTED}:")[-1].strip(" .")
    key = "config.train.batch_size" if mode == "train" else "config.sample.batch_size"
    told = f" ({reason})" if reason else ""
    return f"the memory does not suffice{told}; lower {key} or config.data.image_size"


def _check_mode(mode: str, config) -> None:
    """Raises ValueError where the mode does not fit the method."""
    from cdsde.config import EDITORS

    if mode in ("sample", "serve") and config.method in EDITORS:
        raise ValueError(
            f"config.method is '{config.method}', which edits by words: use --mode=edit"
        )
    if mode == "serve" and config.sample.keep_size:
        raise ValueError(
            "config.sample.keep_size is True, and the page of --mode=serve shows pictures of "
            "config.data.image_size; set it to False, or choose --config.data.fit=pad"
        )
    if mode == "edit" and config.method not in EDITORS:
        raise ValueError(
            f"config.method is '{config.method}', which translates: use --mode=sample, or choose "
            f"one of {', '.join(EDITORS)}"
        )


def _program(mode: str, config):
    """The function `(config, workdir)` of a mode."""
    from cdsde.config import EDITORS

    if mode == "train":
        from cdsde.train.loop import train

        return train
    if mode == "sample":
        from cdsde.translation.run import sample

        return sample
    if mode == "edit":
        from cdsde.edit.run import edit

        return edit
    if mode == "serve":
        from cdsde.serve.page import serve

        return serve
    if mode == "export" and config.export.format == "stablehlo":
        from cdsde.translation.portable import export_translation

        return export_translation
    if mode in ("import", "export"):
        from cdsde.weights import exchange

        return exchange.import_weights if mode == "import" else exchange.export_weights
    if config.method in EDITORS:
        from cdsde.evaluate.edits import evaluate_edits

        return evaluate_edits
    from cdsde.evaluate.translations import evaluate

    return evaluate


def main() -> None:
    """Entry point of `cdsde` and `python -m cdsde.main`."""
    huge_pages.ask()
    interrupts.take()
    from absl import app

    from cdsde.config import command_line
    from cdsde.runtime import logs

    define_flags()
    logs.show_own()
    app.run(run, flags_parser=command_line.parse)


if __name__ == "__main__":
    main()
