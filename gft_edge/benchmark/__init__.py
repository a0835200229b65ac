"""Host side: every target and precision that a machine can run, exported, judged and measured together."""
