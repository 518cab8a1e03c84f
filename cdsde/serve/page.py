"""`--mode=serve`: a local web page to try the methods on a picture (needs the extra "serve").

A visitor drops a picture and chooses task, method and settings; the page shows each step of the
denoising and the metrics. The method defines the sliders; moving one compiles nothing (live.py).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from cdsde import api
from cdsde import config as config_lib
from cdsde.data import TooLargeImage, decode
from cdsde.data.inputs import open_split
from cdsde.diffusion import methods
from cdsde.serve import live
from cdsde.weights import adoption

EXAMPLES = 12
QUEUE = "translate"  # translations wait for each other
SHOWN = 320  # target side of an enlarged picture, in pixels
MOST_STEPS = 100  # maximum of the slider
# The largest number of sliders of any method.
SLIDERS = max(sum(bool(s.slider) for s in m.settings.values()) for m in methods.METHODS.values())
ABOUT = (
    "Drop a picture (or click one below), choose a method, press **Translate**. "
    "M is how much noise the source gets: higher is more target and less source. "
    "Each λ is the weight of one energy."
)


class Page:
    """The logic of the page, without its widgets.

    Args:
      config: the task of the command line; the page also offers `config.serve.tasks`, with the
        checkpoints of their own work folders, runs/TASK.
      workdir: the folder of checkpoints.

    Raises:
      ValueError: no task has a trained network.
    """

    def __init__(self, config: ConfigDict, workdir):
        self.limits, self.seed, others = config.serve, config.sample.seed, []
        for name in config.serve.tasks:
            try:
                others.append(api.load_config(name))
            except ValueError as error:
                raise ValueError(f"config.serve.tasks: {error}") from error
        self.translators = {}
        for c in [config, *(c for c in others if c.task != config.task)]:
            place = workdir if c is config else f"runs/{c.task}"
            left_open = [key for key in config_lib.LEFT_OPEN if c.sample[key] is None]
            translator = live.Translator(adoption.adopted(c, place), place, left_open)
            if translator.methods():
                self.translators[c.task] = translator
            else:
                logging.warning("%s has no trained network and is left out", c.task)
        if not self.translators:
            raise ValueError(
                f"{config.task} has no trained networks: train them with --mode=train, or name "
                "weights with --config.weights.score=... and so on"
            )
        self.task = next(iter(self.translators))  # the command line's task, if it has networks

    def examples(self, task: str) -> list[np.ndarray]:
        """Up to `EXAMPLES` source pictures of the task, uint8 `[H, W, 3]`; [] without data."""
        config = self.translators[task].config
        try:
            source = open_split(config, config_lib.sources(config)[0], config.sample.split)
        except ValueError:
            return []
        positions = np.linspace(0, len(source) - 1, min(EXAMPLES, len(source))).astype(int)
        return [source[int(j)]["image"] for j in positions]

    def translate(self, task: str, method: str, picture, values, steps, seed) -> Iterator:
        """Yield the states of a translation, `live.State`.

        Args:
          task, method: the visitor's choice.
          picture: uint8 `[H, W, 3]`, such as `read` gives.
          values: `{name: value}` of the method's sliders.
          steps: network evaluations; None: the task's.
          seed: seed of the noise.

        Raises:
          ValueError: there is no picture or no such task, a number is out of range, or the
            translation takes longer than `config.serve.max_seconds`.
        """
        if picture is None:
            raise ValueError("there is no picture yet: drop one, or click an example")
        if not isinstance(task, str) or task not in self.translators:
            raise ValueError(f"the task is '{task}'; choose one of {', '.join(self.translators)}")
        end = time.monotonic() + self.limits.max_seconds
        translator = self.translators[task]
        if method not in (known := translator.methods()):
            raise ValueError(f"the method is '{method}'; choose one of {', '.join(known)}")
        config = translator.settings(method, values, steps, seed)
        inside = translator.inside(picture)
        for state in translator(translator.source(picture), config):
            yield state._replace(picture=state.picture[inside])
            if state.step < state.steps and time.monotonic() > end:
                raise ValueError(
                    f"step {state.step} of {state.steps} was reached after "
                    f"{self.limits.max_seconds} s, the most that a translation may take; take "
                    "fewer steps"
                )

    def read(self, path: str) -> np.ndarray:
        """A visitor's file, uint8 `[H, W, 3]`.

        Raises:
          ValueError: it is no picture, or larger than `config.serve` allows.
        """
        # The messages do not show the folder of the uploads.
        name = Path(path).name
        megabytes = Path(path).stat().st_size / 1e6
        if megabytes > self.limits.max_megabytes:
            raise ValueError(
                f"'{name}' has {megabytes:.1f} MB, and {self.limits.max_megabytes} are read: make "
                "it smaller first"
            )
        try:
            return decode(Path(path), name, self.limits.max_pixels)
        except TooLargeImage:
            raise
        except ValueError:
            raise ValueError(
                f"'{name}' cannot be read as a picture: take a whole PNG, JPEG, WebP or another "
                "picture file"
            ) from None


def shown(picture: np.ndarray) -> np.ndarray:
    """A small picture enlarged by an integer factor, without interpolation."""
    factor = max(1, SHOWN // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


class _Widgets:
    """The event handlers of the page's widgets."""

    def __init__(self, gr, page: Page):
        self.gr, self.page = gr, page

    def methods(self, task: str) -> list[str]:
        return self.page.translators[task].methods()

    def sliders(self, task: str, method: str) -> list[dict]:
        """Properties of all setting sliders, then of the steps slider; unused ones are hidden."""
        translator = self.page.translators[task]
        properties = [
            dict(
                visible=True,
                label=s.title,
                minimum=s.least,
                maximum=s.most,
                value=s.value,
                step=1 if s.whole else None,
            )
            for s in translator.sliders(method).values()
        ]
        properties += [dict(visible=False)] * (SLIDERS - len(properties))
        steps = min(translator.steps(method), MOST_STEPS)
        return [*properties, dict(visible=method in config_lib.SDES, value=steps)]

    def choose_method(self, task: str, method: str):
        return [self.gr.update(**properties) for properties in self.sliders(task, method)]

    def choose_task(self, task: str):
        names = self.methods(task)
        gallery = self.gr.update(value=self.thumbnails(task), selected_index=None)
        choice = self.gr.update(choices=names, value=names[0])
        return choice, gallery, *self.choose_method(task, names[0])

    def choose_example(self, task: str, number: int):
        picture = self.page.examples(task)[number]
        return picture, None, self.source(task, picture)

    def source(self, task: str, picture: np.ndarray) -> np.ndarray:
        translator = self.page.translators[task]
        return shown(translator.source(picture)[translator.inside(picture)])

    def thumbnails(self, task: str) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in self.page.examples(task)]

    def run(self, task, method, upload, example, *numbers):
        *values, steps, seed = numbers
        try:
            picture = example if upload is None else self.page.read(upload)
            chosen = dict(zip(self.page.translators[task].sliders(method), values, strict=False))
            source = None if picture is None else self.source(task, picture)
            for state in self.page.translate(task, method, picture, chosen, steps, seed):
                rows = "".join(f"| {k} | {v:.4g} |\n" for k, v in state.metrics.items())
                table = f"| to the source | |\n|---|---|\n{rows}" if rows else ""
                text = f"step {state.step} of {state.steps}\n\n{table}"
                yield source, shown(state.picture), text
        except ValueError as error:
            self.gr.Warning(f"{error}", duration=None)
            yield self.gr.skip(), self.gr.skip(), f"**{error}**"

    def translate(self, picture, task, method, settings, steps, seed):
        """Translates a picture: the result, and its metrics to the source.

        Settings are those of the method that have sliders, such as {"start": 300}; null and {} take
        the task's own, and so does null for steps.
        """
        try:
            picture = None if picture is None else self.page.read(picture)
            *_, last = self.page.translate(task, method, picture, settings, steps, seed)
        except ValueError as error:
            raise self.gr.Error(f"{error}", print_exception=False) from error
        return last.picture, last.metrics


def build(page: Page):
    """Build the page, a `gradio.Blocks`.

    Raises:
      ImportError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError(
            "--mode=serve needs Gradio: pip install 'cdsde[serve]' (or pip install gradio)"
        ) from error
    widgets = _Widgets(gr, page)
    first = widgets.methods(page.task)[0]
    *properties, step_properties = widgets.sliders(page.task, first)

    def choose_example(task, event):
        return widgets.choose_example(task, event.index)

    choose_example.__annotations__["event"] = gr.SelectData  # Gradio reads it; no name of a module

    # Uploads and results are deleted after an hour, looked for every hour.
    with gr.Blocks(title="cdsde", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# cdsde\n{ABOUT}")
        example = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1):
                task = gr.Dropdown(list(page.translators), value=page.task, label="Task")
                method = gr.Radio(widgets.methods(page.task), value=first, label="Method")
                # No check of the file type here: `decode` raises the error sentence.
                upload = gr.File(label="Your picture", type="filepath", height=140)
                button = gr.Button("Translate", variant="primary")
                sliders = [gr.Slider(**p) for p in properties]
                steps = gr.Slider(1, MOST_STEPS, step=1, label="Steps", **step_properties)
                seed = gr.Number(page.seed, precision=0, label="Seed")
            with gr.Column(scale=2):
                with gr.Row():
                    source = gr.Image(label="Source", interactive=False, format="png")
                    result = gr.Image(label="Result", interactive=False, format="png")
                report = gr.Markdown()
                gallery = gr.Gallery(
                    widgets.thumbnails(page.task), label="Examples", columns=6, height=260,
                    object_fit="contain", allow_preview=False, format="png",
                )  # fmt: skip
        numbers = [*sliders, steps]
        # The page's own events take its sliders by position and are no interface for programs.
        inner = dict(api_visibility="private")
        task.change(widgets.choose_task, task, [method, gallery, *numbers], **inner)
        method.input(widgets.choose_method, [task, method], numbers, **inner)
        gallery.select(choose_example, task, [example, upload, source], **inner)
        chosen = [task, method, upload, example, *numbers, seed]
        button.click(widgets.run, chosen, [source, result, report], concurrency_id=QUEUE, **inner)
        _add_interface(gr, page, widgets, first)
    return blocks


def _add_interface(gr, page: Page, widgets: _Widgets, method: str) -> None:
    """The one call for programs, `/translate`, whose inputs have the names of `translate`'s."""
    given = [
        gr.File(label="picture", type="filepath", visible=False),
        gr.Textbox(page.task, label=f"task, one of {', '.join(page.translators)}", visible=False),
        gr.Textbox(method, label="method of the task", visible=False),
        gr.JSON({}, label="settings of the method by name", visible=False),
        gr.Number(page.translators[page.task].steps(method), label="steps", visible=False),
        gr.Number(page.seed, label="seed of the noise", visible=False),
    ]
    made = [
        gr.Image(label="result", format="png", visible=False),
        gr.JSON(label="metrics to the source", visible=False),
    ]
    button = gr.Button(visible=False)
    button.click(widgets.translate, given, made, api_name="translate", concurrency_id=QUEUE)


def _check_address(host: str, port: int) -> None:
    """Raises a ValueError if nothing can be served there; Gradio would print a traceback."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except (OSError, UnicodeError) as error:
        shown = host if len(host) < 60 else f"{host[:60]}..."
        raise ValueError(
            f"the page cannot be served at {shown}:{port} ({error}); choose another "
            "config.serve.host or config.serve.port"
        ) from error


def serve(config: ConfigDict, workdir, block: bool = True):
    """Serve the page until interrupted; with `block` False, return its `gradio.Blocks` at once.

    Raises:
      ValueError: no network is trained, or the address cannot be used.
      ImportError: Gradio is not installed.
    """
    _check_address(config.serve.host, config.serve.port)
    blocks = build(Page(config, workdir))
    import gradio as gr

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    blocks.queue()
    _, url, _ = blocks.launch(
        server_name=config.serve.host,
        server_port=config.serve.port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        theme=theme,
        max_file_size=f"{config.serve.max_megabytes}mb",
    )
    logging.info("the page is at %s; end it with Ctrl+C", url)
    if block:
        blocks.block_thread()
    return blocks
