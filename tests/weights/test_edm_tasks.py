"""What a task makes of EDM's snapshots: their images, their variance and their labels."""

import edm_files
import numpy as np
import pytest
from helpers import one_sentence

from cdsde.networks import published
from cdsde.weights import adoption, resolve
from cdsde.weights.formats import edm

ARGUMENTS = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 0}
ARGUMENTS |= {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": []}
LEVELS = np.append(np.geomspace(2e4, 6e-3, 50), 0)


@pytest.fixture
def task(tiny, tmp_path):
    """`task(arguments, kind, **changes)`: a task with such a snapshot as its score network."""

    def make(arguments, kind="EDMPrecond", **changes):
        arguments = ARGUMENTS | arguments
        weights = edm_files.recipe_weights("SongUNet", arguments, 1)
        if kind == "iDDPMPrecond":
            weights["u"] = LEVELS.astype(np.float32)
        path = tmp_path / "a.pkl"
        edm_files.write(path, edm_files.snapshot(kind, "SongUNet", arguments, weights))
        return tiny(method="sdedit", weights__score=str(path), **changes)

    return make


def test_networks_of_iddpm_see_images_and_the_half_of_their_output_is_dropped(task, tmp_path):
    config = adoption.adopted(task({"out_channels": 6}, "iDDPMPrecond"), tmp_path)
    description = published.of_text(config.score.published)
    assert description.channels == 3 and description.autoencoder is None
    assert not config.score.learn_sigma
    assert resolve.load(config, tmp_path, "score")[0]["params"]
    with pytest.raises(ValueError, match="learned none; set it to fixedsmall"):
        learned = task({"out_channels": 6}, "iDDPMPrecond", sample__variance="learned")
        adoption.adopted(learned, tmp_path)


def test_a_network_of_grey_images_is_told(task, tmp_path):
    grey = {"in_channels": 1, "out_channels": 2}
    with pytest.raises(ValueError, match="sees images of 1 channels, and images here have 3"):
        adoption.adopted(task(grey, "iDDPMPrecond"), tmp_path)


@pytest.mark.parametrize("dropout", [{}, {"label_dropout": 0}, {"label_dropout": 0.1}], ids=str)
def test_a_label_is_needed_where_none_was_ever_left_out(task, tmp_path, dropout):
    arguments = {"label_dim": 4, **dropout}
    free = bool(dropout.get("label_dropout"))
    described = adoption.describe(edm.read(task(arguments).weights.score))
    assert (described.classes, described.needs_class) == (4, not free)
    assert adoption.adopted(task(arguments, score__label=3), tmp_path).score.label == 3
    if free:
        assert adoption.adopted(task(arguments), tmp_path).score.label is None
        return
    with pytest.raises(ValueError, match="knows 4 classes and needs one; choose") as error:
        adoption.adopted(task(arguments), tmp_path)
    assert one_sentence(str(error.value))
