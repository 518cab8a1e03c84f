"""The benchmark's command line.

python -m cdsde.benchmark --tasks=twemoji2fluent --methods=sdedit,egsde --parts=main,fronts
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from absl import flags

from cdsde.benchmark import plan
from cdsde.config import EDITORS, command_line
from cdsde.runtime import files, huge_pages, interrupts, logs

PARTS = ("main", "fronts", "ablations", "work", "convergence", "edits")


def arguments(argv) -> tuple[argparse.Namespace, dict]:
    """The parsed command line, and the overrides of every task's config.

    Raises:
      UserError: an override is invalid.
    """
    rest, overrides = command_line.split_overrides(argv)
    parser = argparse.ArgumentParser("python -m cdsde.benchmark", allow_abbrev=False)
    parser.add_argument(
        "--tasks",
        default=",".join(plan.TASKS),
        help="names of configs; --config.KEY=VALUE overrides each",
    )
    parser.add_argument(
        "--methods",
        help="values of config.method; default: all whose networks the task has, and all editors",
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, in this order")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds in the part main")
    parser.add_argument("--output", default="docs/results", help="where results and report go")
    parser.add_argument(
        "--workdir", default="runs/benchmark", help="where pictures and networks go"
    )
    return parser.parse_args(rest), overrides


def benchmark(argv=None) -> None:
    """Run what is missing; write results.json, table.md and report.html.

    Args:
      argv: the command line; None: sys.argv.
    """
    try:
        args, overrides = arguments(sys.argv[1:] if argv is None else argv)
    except command_line.UserError as error:
        sys.exit(f"error: {error}")
    flags.FLAGS.mark_as_parsed()  # absl's logging and Grain's workers need it
    logs.show_own()
    # Imported late, so that --help and a mistyped flag exit at once.
    from cdsde.benchmark import edits, run, summary
    from cdsde.benchmark.task import Task
    from cdsde.runtime import cache, preemption

    cache.keep_programs(overrides.get("cache", "auto"))
    path = Path(args.output) / "results.json"
    try:
        results = _read(path)
        named = args.methods and _names(args.methods, (*plan.METHODS, *EDITORS), "--methods")
        parts = _names(args.parts, PARTS, "--parts")
        editors = [m for m in named or EDITORS if m in EDITORS] if "edits" in parts else []
        named = named and [m for m in named if m in plan.METHODS]
        parts = [part for part in parts if part != "edits" and named != []]
        if args.seeds < 1:
            raise ValueError(f"--seeds is {args.seeds}; it must be at least 1")
        for name in args.tasks.split(",") if parts else ():
            task = Task(name, Path(args.workdir), overrides)
            methods = named or [m for m in plan.METHODS if task.has(m)]
            for part in parts:
                run.go(task, run.plan_of(task, part, methods, args.seeds), results, path)
                _write(results, path.parent)
        if editors:
            print(edits.go(Path(args.workdir), path.parent, overrides, editors))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except preemption.Preempted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    if parts:
        print(summary.report(results))
        print(f"report: {(path.parent / 'report.html').resolve()}")


def _read(path: Path) -> dict:
    if not path.exists():
        return {"tasks": {}, "points": [], "runs": {}}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON ({error}); restore it, or delete it to begin again"
        ) from error


def _write(results: dict, folder: Path) -> None:
    from cdsde.benchmark import page, summary

    used = {point["run"] for point in results["points"]}
    results["runs"] = {k: v for k, v in sorted(results["runs"].items()) if k in used}
    files.write_json(folder / "results.json", results)
    files.write_bytes(folder / "table.md", summary.report(results).encode())
    files.write_bytes(folder / "report.html", page.page(results, folder).encode())


def _names(value: str, allowed, flag: str) -> list[str]:
    names = value.split(",")
    for name in names:
        if name not in allowed:
            raise ValueError(f"{flag} names '{name}'; choose from {', '.join(allowed)}")
    return names


if __name__ == "__main__":
    huge_pages.ask()
    interrupts.take()
    benchmark()
