"""Time the published PyTorch code in a checkout of EGSDE; for `launch/bench.sh`.

    PYTHON launch/published_step.py CHECKOUT [--part step] [--images 1] [--repeat 3] [--threads 2]

PYTHON has PyTorch; CHECKOUT is a clone of the published repository. Weights are random: times do
not depend on them. Prints one line of JSON with seconds for each program of the part:

    step         the score network of cat2dog at 256², and a guided step with it
    train        training steps of that score network and of the classifier
    train_small  a training step of a score network at 32²
    train_64     a training step of a score network at 64²

A training step is forward, backward, clipping, Adam and, for score networks, the average (EMA).
"""

import argparse
import json
import statistics
import sys
import time

import torch

SMALL = {  # networks of cdsde.scaling.bench, SMALL
    "train_small": {"image_size": 32, "channel_mult": (1, 3, 4), "attention_resolutions": (4,)},
    "train_64": {"image_size": 64, "channel_mult": (1, 2, 3, 4), "attention_resolutions": (8,)},
}


def score_network():
    """The ADM U-Net of profiles/cat2dog."""
    from guided_diffusion.script_util import create_model

    return create_model(
        image_size=256,
        num_class=2,
        num_channels=128,
        num_res_blocks=1,
        learn_sigma=True,
        class_cond=False,
        attention_resolutions="16",
        num_heads=4,
        num_head_channels=64,
        num_heads_upsample=-1,
        use_scale_shift_norm=True,
        dropout=0.0,
        resblock_updown=True,
        use_fp16=False,
        use_new_attention_order=False,
    )


def classifier(phase):
    """The domain classifier of profiles/cat2dog; `phase` is "train" or "test"."""
    from guided_diffusion.script_util import create_dse

    return create_dse(
        image_size=256,
        num_class=2,
        classifier_use_fp16=False,
        classifier_width=128,
        classifier_depth=2,
        classifier_attention_resolutions="32,16,8",
        classifier_use_scale_shift_norm=True,
        classifier_resblock_updown=True,
        classifier_pool="attention",
        phase=phase,
    )


def small_network(part):
    """The score network of a part of `SMALL`."""
    from guided_diffusion.unet import UNetModel

    return UNetModel(
        in_channels=3,
        model_channels=32,
        out_channels=3,
        num_res_blocks=1,
        conv_resample=False,
        num_head_channels=32,
        use_scale_shift_norm=True,
        **SMALL[part],
    )


def guided_step(images, device):
    """`{name: function}` of the score network and of a guided step."""
    from functions.denoising import egsde_sample
    from functions.resizer import Resizer

    size, down = 256, 32  # profiles/cat2dog
    model = score_network().to(device).eval()
    dse = classifier("test").to(device).eval()
    shape, small = (images, 3, size, size), (images, 3, size // down, size // down)
    lowpass = (Resizer(shape, 1 / down).to(device), Resizer(small, down).to(device))
    betas = torch.linspace(1e-4, 2e-2, 1000, device=device)
    y, x_t = torch.randn(shape, device=device), torch.randn(shape, device=device)
    t = torch.full((images,), 250.0, device=device)

    def score():
        with torch.no_grad():
            model(y, t)

    def step():
        egsde_sample(
            y=y.clone(), dse=dse, ls=500, die=lowpass, li=2, t=t, model=model,
            logvar=betas.log(), betas=betas, xt=x_t, s1="cosine", s2="neg_l2", model_name="ADM",
        )  # fmt: skip

    return {"score": score, "step": step}


def training_step(model, loss, average, device):
    """A function that runs one training step; `loss(model)` draws its own noise."""
    model = model.to(device).train()
    parameters = list(model.parameters())
    means = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.Adam(parameters, lr=1e-4)

    def step():
        optimiser.zero_grad()
        loss(model).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if average:
            for mean, p in zip(means, parameters, strict=True):
                mean.mul_(0.9999).add_(p.detach(), alpha=1e-4)

    return step


def training(part, images, device):
    """`{name: function}` of the training steps of a part."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, device=device), 0)
    size = 256 if part == "train" else SMALL[part]["image_size"]
    x = torch.randn((images, 3, size, size), device=device)
    y = torch.zeros(images, dtype=torch.long, device=device)

    def perturbed():
        t = torch.randint(1000, (images,), device=device)
        e = torch.randn_like(x)
        a = alphas[t][:, None, None, None]
        return a.sqrt() * x + (1 - a).sqrt() * e, t, e

    def of_score(model):
        x_t, t, e = perturbed()
        return ((model(x_t, t)[:, :3] - e) ** 2).mean()

    def of_classifier(model):
        x_t, t, _ = perturbed()
        logits = model(x_t, t)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return torch.nn.functional.cross_entropy(logits, y)

    if part != "train":
        return {"score": training_step(small_network(part), of_score, True, device)}
    return {
        "score": training_step(score_network(), of_score, True, device),
        "classifier": training_step(classifier("train"), of_classifier, False, device),
    }


def seconds(function, repeat, device):
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main():
    """Build the part's programs, time them and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout")
    parser.add_argument("--part", default="step", choices=("step", "train", *SMALL))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    sys.path.insert(0, args.checkout)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.part == "step":
        programs = guided_step(args.images, device)
    else:
        programs = training(args.part, args.images, device)
    times = {name: seconds(function, args.repeat, device) for name, function in programs.items()}
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({"seconds": times, "torch": torch.__version__, "device": kind}))


if __name__ == "__main__":
    main()
