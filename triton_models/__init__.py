"""The control surface; value network → Triton model repository; the embedded server."""
