"""`--mode=serve`: a page on this machine to try methods on a picture (needs the extra "serve").

Drop a picture, choose task, method and numbers; the denoising is shown as it goes, the metrics
beside it. Moving a slider compiles nothing (live.py).
"""

import os
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from cdsde import api
from cdsde import config as config_lib
from cdsde.data import decode
from cdsde.data.inputs import open_split
from cdsde.serve import live

EXAMPLES = 12
SHOWN = 320  # pixels of a picture's side on the page
ABOUT = (
    "Drop a picture (or click one below), choose a method, press **Translate**. "
    "M is how much noise the source gets: higher is more target and less source. "
    "λ pulls by the method's own energy, λᵢ holds the low frequencies of the source."
)


class Page:
    """What the page does; the widgets call it.

    Args:
      config: the task of the command line; `config.serve.tasks` are offered beside it.
      workdir: where checkpoints are looked for.
    """

    def __init__(self, config: ConfigDict, workdir):
        others = (api.load_config(path) for path in config.serve.tasks)
        configs = {config.task: config} | {c.task: c for c in others if c.task != config.task}
        self.translators = {}
        for task, own in configs.items():
            translator = live.Translator(own, workdir)
            if translator.methods():
                self.translators[task] = translator
            else:
                logging.warning("%s has no trained network and is left out", task)
        if not self.translators:
            raise ValueError(
                f"{config.task} has no trained networks: train them with --mode=train, or name "
                "weights with --config.weights.score=... and so on"
            )
        self.task = next(iter(self.translators))  # the command line's, if it has networks

    def numbers(self, task: str, method: str) -> dict:
        """The task's own values of the sliders: {"start", "weight", "content", "steps"}."""
        config = self.translators[task].settings(method)
        group = config[method]
        name = live.OWN_WEIGHT.get(method)
        sde = method in config_lib.SDES
        start = config_lib.start_index(config) if sde else None
        steps = (config.sample.steps or start) if sde else None
        return {
            "start": start,
            "weight": group[name] if name else None,
            "content": group.content_weight if name else None,
            "steps": min(steps, config.serve.max_steps) if sde else None,
            "levels": config.sde.num_steps,
        }

    def examples(self, task: str) -> list[np.ndarray]:
        """Some pictures of the task's source domain, uint8; none where there is no data."""
        config = self.translators[task].config
        try:
            source = open_split(config, config_lib.sources(config)[0], config.sample.split)
        except ValueError:
            return []
        at = np.linspace(0, len(source) - 1, min(EXAMPLES, len(source))).astype(int)
        return [source[int(j)]["image"] for j in at]

    def translate(self, task: str, method: str, picture, start, weight, content, steps, seed):
        """States of the translation, `live.State`.

        Args:
          task, method: as chosen.
          picture: a path, or uint8 `[H, W, 3]`.
          start, weight, content, steps, seed: as the sliders stand.

        Raises:
          ValueError: no picture, one that cannot be read, or a number out of range.
        """
        if picture is None:
            raise ValueError("there is no picture yet: drop one, or click an example")
        if not isinstance(picture, np.ndarray):
            picture = _read(picture)
        translator = self.translators[task]
        config = translator.settings(method, start, weight, content, steps, seed)
        yield from translator(translator.source(picture), config)


def shown(picture: np.ndarray) -> np.ndarray:
    """A small picture enlarged by whole pixels, so that it stays as it is."""
    factor = max(1, SHOWN // picture.shape[0])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def build(page: Page):
    """The widgets, a `gradio.Blocks`.

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

    def methods_of(task):
        return page.translators[task].methods()

    first = methods_of(page.task)[0]
    own = page.numbers(page.task, first)

    def sliders(task, method):
        n = page.numbers(task, method)

        def update(key, **more):
            if n[key] is None:  # hidden with the value it has, which must stay within its range
                return gr.update(visible=False)
            return gr.update(visible=True, value=n[key], **more)

        return (
            update("start", maximum=n["levels"]),
            update("weight", maximum=_top(n["weight"])),
            update("content", maximum=_top(n["content"])),
            update("steps"),
        )

    def choose_task(task):
        names = methods_of(task)
        gallery = gr.update(value=_thumbnails(page, task), selected_index=None)
        return gr.update(choices=names, value=names[0]), gallery, *sliders(task, names[0])

    def choose_example(task, event: gr.SelectData):
        picture = page.examples(task)[event.index]
        return picture, None, shown(page.translators[task].source(picture))

    def run(task, method, upload, example, *numbers):
        try:
            picture = example if upload is None else _read(upload)
            for state in page.translate(task, method, picture, *numbers):
                source = shown(page.translators[task].source(picture))
                rows = "".join(f"| {k} | {v:.4g} |\n" for k, v in state.metrics.items())
                table = f"| to the source | |\n|---|---|\n{rows}" if rows else ""
                done = f"step {state.step} of {state.steps}"
                yield source, shown(state.picture), f"{done}\n\n{table}"
        except ValueError as error:
            gr.Warning(f"{error}", duration=None)
            yield gr.skip(), gr.skip(), f"**{error}**"

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    with gr.Blocks(title="cdsde", analytics_enabled=False) as blocks:
        gr.Markdown(f"# cdsde\n{ABOUT}")
        example = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1):
                task = gr.Dropdown(list(page.translators), value=page.task, label="Task")
                method = gr.Radio(methods_of(page.task), value=first, label="Method")
                # No check of the kind of file here: what is none gets its sentence from decode.
                upload = gr.File(label="Your picture", type="filepath", height=140)
                button = gr.Button("Translate", variant="primary")
                start = gr.Slider(1, own["levels"], own["start"], step=1, label="M, start level")
                weight = gr.Slider(
                    0, _top(own["weight"]), own["weight"] or 0, label="λ, of the method's energy",
                    visible=own["weight"] is not None,
                )  # fmt: skip
                content = gr.Slider(
                    0, _top(own["content"]), own["content"] or 0, label="λᵢ, low frequencies",
                    visible=own["content"] is not None,
                )  # fmt: skip
                most = page.translators[page.task].config.serve.max_steps
                steps = gr.Slider(1, most, own["steps"], step=1, label="Steps")
                seed = gr.Number(0, precision=0, label="Seed")
            with gr.Column(scale=2):
                with gr.Row():
                    source = gr.Image(label="Source", interactive=False, format="png")
                    result = gr.Image(label="Result", interactive=False, format="png")
                told = gr.Markdown()
                gallery = gr.Gallery(
                    _thumbnails(page, page.task), label="Examples", columns=6, height=260,
                    object_fit="contain", allow_preview=False, format="png",
                )  # fmt: skip
        four = [start, weight, content, steps]
        task.change(choose_task, task, [method, gallery, *four])
        method.input(sliders, [task, method], four)
        gallery.select(choose_example, task, [example, upload, source])
        inputs = [task, method, upload, example, *four, seed]
        button.click(run, inputs, [source, result, told], api_name="translate")
    blocks.theme_of_page = theme
    return blocks


def serve(config: ConfigDict, workdir, block: bool = True):
    """Open the page and stay; returns its `gradio.Blocks` where `block` is False.

    Raises:
      ValueError: no network is trained.
      ImportError: Gradio is not installed.
    """
    blocks = build(Page(config, workdir))
    blocks.queue()
    _, url, _ = blocks.launch(
        server_name=config.serve.host,
        server_port=config.serve.port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        theme=blocks.theme_of_page,
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
        # Without the place where the page keeps its uploads.
        raise ValueError(
            f"'{name}' cannot be read as a picture: take a whole PNG, JPEG, WebP or BMP"
        ) from None


def _top(value: float | None) -> float:
    """The upper end of a slider whose own value this is."""
    return 100.0 if not value else 5.0 * value


def _thumbnails(page: Page, task: str) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in page.examples(task)]
