#!/usr/bin/env bash
# Set up and run the tests; arguments go to pytest.
#   bash launch/test.sh              the fast tests (about 7 minutes on 2 idle CPU cores)
#   bash launch/test.sh -m slow      the slow tests (about half an hour; full-size networks: 4 GB)
source "$(dirname "$0")/setup.sh"
# Two processes, a file to each at a time: most of the time goes to compiling, on one core.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
