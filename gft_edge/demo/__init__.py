"""Everything the download-free demo needs: its drawings and its training."""
