"""Settings that every test shares."""

import matplotlib
from hypothesis import settings

matplotlib.use("Agg")

# No test of a time limit: a deadline would fail on a busy machine.
settings.register_profile("splitgym", deadline=None, print_blob=True)
settings.load_profile("splitgym")
