"""Which tests run alone. ``make test`` runs the others first, on all cores, and then these, one after the other."""

import pytest

# They start ranks, which are pinned to cores, or look at what is left on the whole machine. (test_agreement starts
# ranks too, one plan after the other, and measures nothing.)
ALONE = {
    "test_browser", "test_chapter_07", "test_heartbeat", "test_kills", "test_labs",
    "test_launch", "test_live", "test_matrices", "test_monitor", "test_nodes", "test_nodes_link", "test_openai_client",
    "test_processes", "test_refusals", "test_replay", "test_serving", "test_sweep", "test_traffic", "test_widgets",
    "test_breaking",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)
