"""The web page of ``irg serve`` (extra ``ui``: gradio): the same engine, queue and limits as the HTTP API."""
