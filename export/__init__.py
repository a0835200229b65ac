"""Host side: from a trained run to a verified bundle, graph to graph."""
