"""The models in the box: one folder each, in the layout of a Hub repository, with card, curve and evaluation."""
