"""What passes between rooms and what lies in a bundle. Needs NumPy alone."""
