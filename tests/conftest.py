"""What holds for every test."""

import os

from hypothesis import settings

# In continuous integration the same examples every time: a surprise belongs to the person who can look at it.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")
