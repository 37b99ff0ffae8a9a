"""The API under bad input: cases made from its own OpenAPI description, and raw bytes on its port."""
