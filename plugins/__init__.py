"""How a backend gets in. What is registered is data and names: this room imports protocol alone."""
