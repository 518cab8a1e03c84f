"""What programs cost, read off compiled ones."""

import json

import jax
import pytest

from cdsde import load_config
from cdsde.networks import build
from cdsde.runtime import mesh
from cdsde.scaling import bench, chips, hlo, loops, programs, timing, tpu_check

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def small(tiny):
    """A config whose programs compile in seconds."""
    return lambda **changes: tiny(**{"sample__steps": None, **changes})


def parameter_bytes(config, stage: str) -> int:
    shapes = jax.eval_shape(build.MODELS[stage](config).init, jax.random.key(0))
    return 4 * build.count_parameters(shapes)


# Adam has two moments, Muon one. Muon's iteration needs whole matrices: where the state is split,
# it gathers the momentum and what it makes of it beside the parameters.
@pytest.mark.parametrize(
    ("optimizer", "copies", "gathered"),
    [("adam", 4, 1), pytest.param("muon", 3, 3, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_collectives_of_a_training_step(small, optimizer, copies, gathered):
    config = small()
    size = parameter_bytes(config, "score")
    found = {}
    for fsdp in (1, 4):
        devices = mesh.make_mesh(fsdp=fsdp)
        split = small(mesh__fsdp=fsdp, train__score__optimizer=optimizer)
        compiled = programs.train_step(split, "score", devices, 16).lower().compile()
        found[fsdp] = hlo.collectives(compiled.as_text())
        memory = compiled.memory_analysis()
        # The state: parameters, their average and the moments.
        expected = copies * size / (1 if fsdp == 1 else 2)
        assert memory.argument_size_in_bytes < 1.1 * expected
        assert memory.alias_size_in_bytes > 0.9 * memory.output_size_in_bytes, "state is donated"
    assert "all-gather" not in found[1] and "all-gather" in found[4]
    # Gradients are summed once.
    assert found[1]["all-reduce"][1] == pytest.approx(size, rel=0.05)
    assert found[4]["all-gather"][1] == pytest.approx(gathered * size, rel=0.2)


def test_bytes_and_numbers_of_collectives_in_a_text():
    text = """
  %a = f32[4,8]{1,0} all-reduce(%x), channel_id=1
  %b = (bf16[10]{0}, bf16[40]{0}) all-gather-start(%y), dimensions={0}
  %c = bf16[40]{0} all-gather-done(%b)
  ROOT %d = (f32[2], s32[3]) all-to-all(%p, %q)
  %e = f32[4,8] add(%a, %a), metadata={op_name="all-reduce"}
"""
    assert hlo.collectives(text) == {
        "all-reduce": (1, 128),
        "all-gather": (1, 80),
        "all-to-all": (1, 20),
    }


@pytest.mark.parametrize("method", ["sdedit", "egsde"])
@pytest.mark.slow
def test_memory_of_sampling_does_not_grow_with_steps(small, method):
    used = []
    for start in (8, 64):
        config = small(method=method, **{f"{method}__start": start})
        program = programs.translation(config, mesh.make_mesh(jax.devices()[:1]), 2)
        assert program.trips == start
        used.append(program.lower().compile().memory_analysis().temp_size_in_bytes)
    assert used[1] < used[0] + 10_000


def test_a_roofline_is_the_slowest_of_three():
    chip = chips.V5E
    base = dict(memory=0, arguments=0, temporaries=0, flops=0.0, bytes=0.0, collectives={})
    for changes, bound, seconds in (
        ({"flops": 2 * chip.flops}, "arithmetic", 2),
        ({"bytes": 3 * chip.bandwidth}, "memory", 3),
        ({"collectives": {"all-reduce": (1, int(4 * chip.links))}}, "links", 4),
    ):
        got = tpu_check.roofline(tpu_check.Cost(**{**base, **changes}), chip)
        assert got == (pytest.approx(seconds), bound)


@pytest.mark.slow
def test_timing_runs_a_step_that_gives_its_memory_away(small):
    config = small()
    program = programs.train_step(config, "classifier", mesh.make_mesh(jax.devices()[:1]), 4)
    timed = timing.measure(program, repeat=2)
    assert timed.seconds > 0 and timed.flops > 1e6
    assert timing.peak(size=64) > 0


@pytest.mark.campaign
def test_loops_are_timed_as_users_run_them(small):
    devices = mesh.make_mesh(jax.devices()[:1])
    config = small(method="sdedit", train__score__batch_size=8)
    for timed in (loops.training(config, devices), loops.sampling(config, devices, 4)):
        assert timed.seconds > 0 and timed.program > 0
        assert "% outside" in timed.sentence()


@pytest.mark.slow
def test_bench_from_the_command_line(tmp_path, capsys, pictures):
    output = tmp_path / "bench.json"
    changes = {
        "data.root": pictures,
        "data.image_size": 16,
        "score.channel_mult": (1,),
        "score.attention_resolutions": (),
        "data.source": "blue",
        "data.target": "yellow",
        "method": "sdedit",
    }
    sets = [f"--config.{key}={value}" for key, value in changes.items()]
    args = ["--config=folder", "--images=8", "--parts=forward,step", "--repeat=1", *sets]
    bench.bench([*args, f"--output={output}"])
    record = json.loads(output.read_text())
    assert [row[0] for row in record["rows"]] == ["score forward", "sample sdedit, one step"]
    assert "images/s" in capsys.readouterr().out
    for more, message in (
        (["--parts=walk"], "--parts names 'walk'; of folder choose from forward"),
        (["--config.nothing=1"], "config has no key 'nothing'"),
        (["--published=/nowhere"], "the published code did not run in"),
    ):
        with pytest.raises(SystemExit, match=message):
            bench.bench([*args, *more] if "published" in more[0] else [*args[:2], *more])
    # Rows before and after the failure of the published code are kept.
    output.unlink()
    with pytest.raises(SystemExit, match="the published code did not run in"):
        bench.bench([*args, "--published=/nowhere", f"--output={output}"])
    assert len(json.loads(output.read_text())["rows"]) == 2


def test_a_whole_translation_is_compared_with_every_published_step():
    ours, theirs = {"sample egsde": 2.0}, {"seconds": {"step": 3.0, "score": 1.0}}
    assert bench.pairs("step", ours, theirs, 500) == [("step", 2.0, 3.0)]
    assert bench.pairs("translation", ours, theirs, 500) == [("20 steps for 500", 40.0, 1500.0)]


def test_tpu_check_of_unknown_names():
    for args, message in (
        (["--programs=walk"], "--programs names 'walk'; choose from score"),
        (["--chips=7"], "--chips=7 is no slice; choose from"),
    ):
        with pytest.raises(SystemExit, match=message):
            tpu_check.check(args)


@pytest.mark.parametrize(
    ("method", "part", "words"),
    [
        ("sdedit", programs.energy_gradient, "sdedit has no energies; leave the part"),
        ("cut", programs.energy_gradient, "config.method is 'cut', which has no reverse SDE"),
        ("cut", programs.translation, "config.method is 'cut', which has no reverse SDE"),
    ],
)
def test_a_part_that_a_method_does_not_have_is_told(method, part, words):
    config = load_config("twemoji2fluent", {"method": method})
    with pytest.raises(ValueError, match=words):
        part(config, mesh.make_mesh(jax.devices()[:1]), 1)


@pytest.mark.parametrize("task", ["twemoji2fluent", "gothic2mincho"])
def test_the_energies_of_each_task_can_be_measured(task):
    """With their own networks: a direction of domains, an encoded source, a classifier."""
    config = load_config(task, {"method": "contrastive_sde"})
    program = programs.energy_gradient(config, mesh.make_mesh(jax.devices()[:1]), 1)
    assert "energies" in program.name and program.lower() is not None
