"""`--mode=serve`: a local web page to try the methods on a picture (needs the extra "serve").

A visitor drops a picture and chooses task, method and settings; the page shows each step of the
denoising and the metrics. The method defines the sliders; moving one compiles nothing (live.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from cdsde import api
from cdsde import config as config_lib
from cdsde.data import decode
from cdsde.data.inputs import open_split
from cdsde.diffusion import methods
from cdsde.serve import live

EXAMPLES = 12
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
      config: the task of the command line; the page also offers `config.serve.tasks`.
      workdir: the folder of checkpoints.

    Raises:
      ValueError: no task has a trained network.
    """

    def __init__(self, config: ConfigDict, workdir):
        others = (api.load_config(path) for path in config.serve.tasks)
        configs = {config.task: config} | {c.task: c for c in others if c.task != config.task}
        self.translators = {}
        for task, config_of_task in configs.items():
            translator = live.Translator(config_of_task, workdir)
            if translator.methods():
                self.translators[task] = translator
            else:
                logging.warning("%s has no trained network and is left out", task)
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
          picture: a path, or uint8 `[H, W, 3]`.
          values: `{name: value}` of the method's sliders.
          steps: network evaluations.
          seed: seed of the noise.

        Raises:
          ValueError: there is no picture, it cannot be decoded, or a number is out of range.
        """
        if picture is None:
            raise ValueError("there is no picture yet: drop one, or click an example")
        if not isinstance(picture, np.ndarray):
            picture = _read(picture)
        translator = self.translators[task]
        config = translator.settings(method, values, steps, seed)
        yield from translator(translator.source(picture), config)


def shown(picture: np.ndarray) -> np.ndarray:
    """A small picture enlarged by an integer factor, without interpolation."""
    factor = max(1, SHOWN // picture.shape[0])
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
        return picture, None, shown(self.page.translators[task].source(picture))

    def thumbnails(self, task: str) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in self.page.examples(task)]

    def run(self, task, method, upload, example, *numbers):
        *values, steps, seed = numbers
        translator = self.page.translators[task]
        names = translator.sliders(method)
        try:
            picture = example if upload is None else _read(upload)
            chosen = dict(zip(names, values, strict=False))
            for state in self.page.translate(task, method, picture, chosen, steps, seed):
                source = shown(translator.source(picture))
                rows = "".join(f"| {k} | {v:.4g} |\n" for k, v in state.metrics.items())
                table = f"| to the source | |\n|---|---|\n{rows}" if rows else ""
                text = f"step {state.step} of {state.steps}\n\n{table}"
                yield source, shown(state.picture), text
        except ValueError as error:
            self.gr.Warning(f"{error}", duration=None)
            yield self.gr.skip(), self.gr.skip(), f"**{error}**"


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

    def choose_example(task, event: gr.SelectData):
        return widgets.choose_example(task, event.index)

    with gr.Blocks(title="cdsde", analytics_enabled=False) as blocks:
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
                seed = gr.Number(0, precision=0, label="Seed")
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
        task.change(widgets.choose_task, task, [method, gallery, *numbers])
        method.input(widgets.choose_method, [task, method], numbers)
        gallery.select(choose_example, task, [example, upload, source])
        chosen = [task, method, upload, example, *numbers, seed]
        button.click(widgets.run, chosen, [source, result, report], api_name="translate")
    return blocks


def serve(config: ConfigDict, workdir, block: bool = True):
    """Serve the page until interrupted; with `block` False, return its `gradio.Blocks` at once.

    Raises:
      ValueError: no network is trained.
      ImportError: Gradio is not installed.
    """
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
    )
    logging.info("the page is at %s; end it with Ctrl+C", url)
    if block:
        blocks.block_thread()
    return blocks


def _read(path: str) -> np.ndarray:
    name = Path(path).name
    try:
        return decode(Path(path), name)
    except ValueError:
        # The message does not show the folder of the uploads.
        raise ValueError(
            f"'{name}' cannot be read as a picture: take a whole PNG, JPEG, WebP or BMP"
        ) from None
