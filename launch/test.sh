#!/usr/bin/env bash
# Set up and run the tests; arguments go to pytest.
#   bash launch/test.sh              the fast tests (about 10 minutes on 2 idle CPU cores)
#   bash launch/test.sh -m slow      the slow tests
source "$(dirname "$0")/setup.sh"
exec .venv/bin/python -m pytest "$@"
