#!/usr/bin/env bash
# Build the wheel, install it into a new environment, and run it in an empty folder.
#   bash launch/wheel.sh
source "$(dirname "$0")/setup.sh"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" .
rm -rf build
.venv/bin/python -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "$folder"/cdsde-*.whl
mkdir "$folder/empty"
cd "$folder/empty"
"$folder/env/bin/cdsde" --config=twemoji2fluent --mode=sample --config.sample.limit=2
"$folder/env/bin/python" - <<'PYTHON'
import cdsde
from cdsde.data import open_domain

config = cdsde.load_config("twemoji2fluent", {"method": "sdedit", "sample.steps": 4})
pictures = cdsde.translate(config, [open_domain("emoji", "twemoji", "test")[0]["image"]])
assert pictures.shape == (1, 64, 64, 3) and pictures.dtype == "uint8", pictures.shape
assert cdsde.__file__.startswith(__import__("sys").prefix), "cdsde was not imported from the wheel"
print("the wheel works: cdsde", cdsde.__version__)
PYTHON
