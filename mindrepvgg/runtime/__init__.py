"""The process around a network: its environment, device, ranks and compiled graphs."""
