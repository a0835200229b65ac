"""What a machine is, and how long a bundle takes on it."""
