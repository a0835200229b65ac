"""What finished runs say side by side: the paper's tables and figures."""
