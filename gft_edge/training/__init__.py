"""Training on a data set: data, the loop, and the numbers a classifier is judged by."""
