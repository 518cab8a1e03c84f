"""What an exported network says of its training."""

import pytest
from helpers import read_json

from cdsde.train import loop
from cdsde.weights import checkpoint, exchange

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_the_card_counts_every_run_by_its_own_rate(tiny, tmp_path, on_devices):
    on_devices(1)
    loop.train_stage(tiny(train__steps=1), tmp_path, "encoder")
    log = tmp_path / "logs" / "encoder" / "metrics.csv"
    # A run of 1 + 7200 steps at 2 a second, resumed for 7200 steps at 4 a second: 1 h + 0.5 h.
    log.write_text(
        "step,loss,steps_per_second\n1,5.0,0\n7201,2.0,2.0\n10801,1.5,4.0\n14401,1.0,4.0\n"
    )
    card = exchange.card(tiny(), tmp_path, "encoder")
    assert card["hours"] == pytest.approx(1.5)
    assert card["last_log_row"]["loss"] == 1.0
    assert card["step"] == checkpoint.latest_step(tmp_path, "encoder") == 1


def test_an_exported_network_carries_its_card(tiny, tmp_path, on_devices):
    on_devices(1)
    config = tiny(train__steps=2, export__stage="encoder", export__format="cdsde")
    loop.train_stage(config, tmp_path, "encoder")
    path = exchange.export_weights(config, tmp_path)
    card = read_json(path.with_suffix(".json"))
    assert card["stage"] == "encoder" and card["step"] == 2 and card["hours"] >= 0
    (tmp_path / "logs" / "encoder" / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"metrics.csv does not exist, but the card needs it"):
        exchange.export_weights(config, tmp_path)
