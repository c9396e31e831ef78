"""How nbval compares the notebooks' outputs."""

import pytest


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Compare no text on stderr: progress bars and warnings go there, with times in them.

    nbval's files carry the names of what they leave out; an option for it does not exist.
    """
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
