"""Many variants of one run: exported, judged, measured and remembered."""
