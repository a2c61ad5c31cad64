"""What the scripts share: flags, tracking, evaluation, model files and the models in the box."""
