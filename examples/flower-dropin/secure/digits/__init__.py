"""A Flower app as many have it: softmax regression on synthetic digits of a few pixels."""
