"""Planning tasks of the paper on insertion language models (Patel et al., arXiv 2505.05755): generators, judges, vocabulary."""
