"""What can be scored in place of one model after one prompt: contrasts of prompts or models, and ensembles."""
