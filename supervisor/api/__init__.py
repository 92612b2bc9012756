"""The gateway: HTTP bodies to tasks, output to OpenAI's shapes, and who may ask."""
