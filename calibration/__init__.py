"""Host side: the images that exports are verified and calibrated on."""
