"""ParallelBench (arXiv 2510.04767): tasks from no to much dependence between tokens, their metrics and their analysis."""
