"""The model over HTTP: OpenAI's API, requests of all clients in one batch, streamed (``docs/serving.md``)."""
