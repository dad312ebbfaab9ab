"""decodery beside other engines: the same model file, prompts and rules, each engine in an environment of its own."""
