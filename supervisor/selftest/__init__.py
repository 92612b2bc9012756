"""Does it hold on this machine: swaps, with processes killed on purpose, and what came of it."""
