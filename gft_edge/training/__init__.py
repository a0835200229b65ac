"""Training on a class folder: data, the loop, and the numbers a classifier is judged by."""
