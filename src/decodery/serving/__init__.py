"""The OpenAI-compatible server of `decodery serve`. Needs the extra `serve`; docs/serving.md tells how it is used."""
