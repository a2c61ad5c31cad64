"""Weights: in files of several formats, in the box and on the Hugging Face Hub."""
