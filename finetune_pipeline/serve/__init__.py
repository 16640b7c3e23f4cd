"""Stage 11: the endpoint, an OpenAI-compatible server, and the deployment of a version to it."""
