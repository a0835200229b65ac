"""Where images come from, and all that is classified besides."""
