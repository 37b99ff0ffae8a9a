"""What one choice (state → weights) costs: naive exports, ours, eager torch, through Triton, on a GPU."""
