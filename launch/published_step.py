"""Time the published guided step (PyTorch) in a checkout of EGSDE; for `launch/bench.sh`.

    PYTHON launch/published_step.py CHECKOUT [--images 1] [--repeat 3] [--threads 2]

PYTHON has PyTorch; CHECKOUT is a clone of the published repository. Weights are random: the time of
a step does not depend on them. Prints one line of JSON: seconds of the score network and of a step.
"""

import argparse
import json
import statistics
import sys
import time


def main():
    """Build the published networks, time them and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    sys.path.insert(0, args.checkout)

    import torch
    from functions.denoising import egsde_sample
    from functions.resizer import Resizer
    from guided_diffusion.script_util import create_dse, create_model

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, down = 256, 32  # profiles/cat2dog
    model = create_model(
        image_size=size,
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
    dse = create_dse(
        image_size=size,
        num_class=2,
        classifier_use_fp16=False,
        classifier_width=128,
        classifier_depth=2,
        classifier_attention_resolutions="32,16,8",
        classifier_use_scale_shift_norm=True,
        classifier_resblock_updown=True,
        classifier_pool="attention",
        phase="test",
    )
    model, dse = model.to(device).eval(), dse.to(device).eval()
    shape = (args.images, 3, size, size)
    small = (args.images, 3, size // down, size // down)
    lowpass = (Resizer(shape, 1 / down).to(device), Resizer(small, down).to(device))
    betas = torch.linspace(1e-4, 2e-2, 1000, device=device)
    y, x_t = torch.randn(shape, device=device), torch.randn(shape, device=device)
    t = torch.full((args.images,), 250.0, device=device)

    def score():
        with torch.no_grad():
            model(y, t)

    def step():
        egsde_sample(
            y=y.clone(), dse=dse, ls=500, die=lowpass, li=2, t=t, model=model,
            logvar=betas.log(), betas=betas, xt=x_t, s1="cosine", s2="neg_l2", model_name="ADM",
        )  # fmt: skip

    def seconds(function):
        times = []
        for _ in range(args.repeat + 1):
            begin = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[1:])

    times = {"score": seconds(score), "step": seconds(step)}
    device = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({**times, "torch": torch.__version__, "device": device}))


if __name__ == "__main__":
    main()
