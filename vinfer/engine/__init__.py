"""The run half's engine: requests into slots, programs onto devices, tokens out."""
